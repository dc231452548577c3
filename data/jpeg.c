/* Decodes a part of a plain JPEG; data/jpeg.py says which are plain, and loads this.

   No Python.h: called through ctypes, which releases the GIL. There is no state between calls. */

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: older ones cut and skip wrongly, or not at all"
#endif

typedef unsigned char byte;

enum { NOT_PLAIN, PLAIN, SIMPLE }; /* SIMPLE: nothing but the segments that every encoder writes */

enum {
    SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, RST0 = 0xD0, RST7 = 0xD7, SOI = 0xD8, EOI = 0xD9,
    SOS = 0xDA, DQT = 0xDB, DRI = 0xDD, APP0 = 0xE0, APP1 = 0xE1, APP2 = 0xE2,
    APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE
};

static const long SIMPLE_PIXELS = 1 << 24; /* above, Pillow is asked, which has limits of its own */

/* ------------------------------------------------------------ the header */

static unsigned get16(const byte *at, int is_little) {
    return is_little ? at[0] | at[1] << 8 : at[0] << 8 | at[1];
}

static size_t get32(const byte *at, int is_little) {
    size_t low = get16(at + (is_little ? 0 : 2), is_little);
    return low | (size_t)get16(at + (is_little ? 2 : 0), is_little) << 16;
}

/* Whether no decoder turns the image by this APP1 segment; one that is no EXIF may be taken for it,
   as torchvision reads whatever comes first. */
static int is_upright(const byte *data, size_t size) {
    if (size < 14) return 1;
    data += 6; /* "Exif", 0, 0 */
    size -= 6;
    int is_little = data[0] == 'I';
    if (get16(data + 2, is_little) != 42) return 1;
    size_t at = get32(data + 4, is_little);
    if (at + 2 > size) return 1;
    size_t num_entries = get16(data + at, is_little);
    for (at += 2; num_entries-- && at + 12 <= size; at += 12)
        if (get16(data + at, is_little) == 0x0112 && get16(data + at + 8, is_little) != 1) return 0;
    return 1;
}

/* Whether all tables are of 8 bits and whole. */
static int are_whole_tables(const byte *data, size_t size) {
    if (size == 0 || size % 65) return 0;
    for (size_t at = 0; at < size; at += 65)
        if (data[at] > 3) return 0;
    return 1;
}

/* Read a frame header of 8 bits; the samplings are those that all versions interpolate alike. */
static int read_frame(const byte *data, size_t size, int *width, int *height, int *num_components) {
    if (size < 9 || data[0] != 8) return 0;
    *height = get16(data + 1, 0);
    *width = get16(data + 3, 0);
    *num_components = data[5];
    if (*num_components != 1 && *num_components != 3) return 0;
    if (size != 6 + 3 * (size_t)*num_components || !*width || !*height) return 0;
    if (*num_components == 1) return data[7] == 0x11;
    int is_common = data[7] == 0x11 || data[7] == 0x21 || data[7] == 0x22; /* 4:4:4, 4:2:2, 4:2:0 */
    return is_common && data[10] == 0x11 && data[13] == 0x11;
}

/* Whether this is the one scan of a sequential image, with all components. */
static int is_whole_scan(const byte *data, size_t size, int num_components) {
    if (size != 4 + 2 * (size_t)num_components || data[0] != num_components) return 0;
    return data[size - 3] == 0 && data[size - 2] == 63 && data[size - 1] == 0;
}

/* Whether coded data go on to the end marker, with no marker between them but restarts. */
static int ends_rightly(const byte *at, const byte *end) {
    while ((at = memchr(at, 0xFF, (size_t)(end - at))) != NULL) {
        do {
            if (++at == end) return 0;
        } while (*at == 0xFF);
        if (*at == EOI) return 1;
        if (*at != 0 && (*at < RST0 || *at > RST7)) return 0;
    }
    return 0;
}

static int is_usual_segment(int marker, const byte *data, size_t size) {
    if (marker == APP0) return size >= 14 && memcmp(data, "JFIF", 5) == 0;
    if (marker == APP14) return size >= 12 && memcmp(data, "Adobe", 5) == 0;
    if (marker == APP2) return size >= 14 && memcmp(data, "ICC_PROFILE", 12) == 0;
    return marker == COM;
}

/* Say whether a JPEG is plain, and its size. */
int jpeg_header(const byte *content, size_t num_bytes, int *width, int *height) {
    const byte *at = content, *end = content + num_bytes;
    int kind = SIMPLE, num_components = 0;
    if (num_bytes < 4 || at[0] != 0xFF || at[1] != SOI) return NOT_PLAIN;
    at += 2;
    for (;;) {
        if (end - at < 4 || at[0] != 0xFF) return NOT_PLAIN;
        int marker = at[1];
        size_t length = get16(at + 2, 0);
        if (length < 2 || length > (size_t)(end - at) - 2) return NOT_PLAIN;
        const byte *data = at + 4;
        size_t size = length - 2;
        at += 2 + length;
        switch (marker) {
        case SOF0:
        case SOF1:
            if (num_components || !read_frame(data, size, width, height, &num_components))
                return NOT_PLAIN;
            break;
        case DQT:
            if (!are_whole_tables(data, size)) return NOT_PLAIN;
            break;
        case DHT:
            break; /* libjpeg refuses what it cannot use */
        case DRI:
            if (size != 2) return NOT_PLAIN;
            break;
        case SOS:
            if (!num_components || !is_whole_scan(data, size, num_components)) return NOT_PLAIN;
            if ((long)*width * *height > SIMPLE_PIXELS) kind = PLAIN;
            return ends_rightly(at, end) ? kind : NOT_PLAIN;
        default:
            if ((marker < APP0 || marker > APP15) && marker != COM) return NOT_PLAIN;
            if (marker == APP1 && !is_upright(data, size)) return NOT_PLAIN;
            if (!is_usual_segment(marker, data, size)) kind = PLAIN;
        }
    }
}

/* ------------------------------------------------------------ the pixels */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf start;
} Errors;

/* Leave at a warning, too: how a decoder goes on behind damage differs between versions. */
static void leave(j_common_ptr common) { longjmp(((Errors *)common->err)->start, 1); }

static void leave_if_damaged(j_common_ptr common, int level) {
    if (level < 0) leave(common);
}

/* Read rows of `part`, of which the first column is `from` pixels into the decoded ones. */
static void read_rows(j_decompress_ptr image, int from, int width, int height, byte *out) {
    size_t row_bytes = (size_t)width * image->output_components;
    JSAMPROW row = (*image->mem->alloc_large)(
        (j_common_ptr)image, JPOOL_IMAGE, (size_t)image->output_width * image->output_components);
    for (; height--; out += row_bytes) {
        jpeg_read_scanlines(image, &row, 1);
        memcpy(out, row + (size_t)from * image->output_components, row_bytes);
    }
}

/* Decode a box within a plain JPEG to (height, width, channels), 3 or 1. Returns whether it did. */
int jpeg_decode(const byte *content, size_t num_bytes, int channels, int left, int top, int width,
                int height, byte *out) {
    struct jpeg_decompress_struct image;
    Errors errors;
    image.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = leave;
    errors.base.emit_message = leave_if_damaged;
    if (setjmp(errors.start)) {
        jpeg_destroy_decompress(&image);
        return 0;
    }
    jpeg_create_decompress(&image);
    jpeg_mem_src(&image, content, num_bytes);
    jpeg_read_header(&image, TRUE);
    image.out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_start_decompress(&image);
    int is_inside = left >= 0 && top >= 0 && width > 0 && height > 0 &&
                    width <= (int)image.output_width - left &&
                    height <= (int)image.output_height - top;
    if (!is_inside || image.output_components != channels) leave((j_common_ptr)&image);
    /* columns beside the part, as their colours are interpolated between neighbours */
    JDIMENSION first = left > 2 ? left - 2 : 0;
    JDIMENSION count = left + width + 2 - first;
    if (count > image.output_width - first) count = image.output_width - first;
    jpeg_crop_scanline(&image, &first, &count);
    if (top > 0) jpeg_skip_scanlines(&image, top);
    read_rows(&image, left - (int)first, width, height, out);
    jpeg_destroy_decompress(&image);
    return 1;
}
