/* Decodes a part of a plain JPEG and resizes it; jpeg.py says which are plain, and loads this.

   No Python.h: called through ctypes, which releases the GIL. There is no state between calls. */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: older ones cut and skip wrongly, or not at all"
#endif

typedef unsigned char byte;

enum { NOT_PLAIN, PLAIN, SIMPLE }; /* SIMPLE: nothing but the segments that every encoder writes */

enum {
    SOF0 = 0xC0, SOF1 = 0xC1, SOF2 = 0xC2, DHT = 0xC4, RST0 = 0xD0, RST7 = 0xD7, SOI = 0xD8,
    EOI = 0xD9, SOS = 0xDA, DQT = 0xDB, DRI = 0xDD, APP0 = 0xE0, APP1 = 0xE1, APP2 = 0xE2,
    APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE
};

static const long SIMPLE_PIXELS = 1 << 24; /* above, Pillow is asked, which has limits of its own */

/* ------------------------------------------------------------ the header */

static unsigned get16(const byte *at) { return at[0] << 8 | at[1]; }

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
    *height = get16(data + 1);
    *width = get16(data + 3);
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

/* Say whether a JPEG is plain, its size, and where its first APP1 segment has its content. */
int read_jpeg_header(const byte *content, size_t num_bytes, int *width, int *height, size_t *app1,
                     size_t *app1_size) {
    const byte *at = content, *end = content + num_bytes;
    int kind = SIMPLE, num_components = 0, is_progressive = 0;
    *app1 = *app1_size = 0;
    if (num_bytes < 4 || at[0] != 0xFF || at[1] != SOI) return NOT_PLAIN;
    at += 2;
    for (;;) {
        if (end - at < 4 || at[0] != 0xFF) return NOT_PLAIN;
        int marker = at[1];
        size_t length = get16(at + 2);
        if (length < 2 || length > (size_t)(end - at) - 2) return NOT_PLAIN;
        const byte *data = at + 4;
        size_t size = length - 2;
        at += 2 + length;
        switch (marker) {
        case SOF0:
        case SOF1:
        case SOF2:
            is_progressive = marker == SOF2;
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
            if (!num_components) return NOT_PLAIN;
            if (is_progressive) return PLAIN; /* before a pixel, libjpeg reads all scans */
            if (!is_whole_scan(data, size, num_components)) return NOT_PLAIN;
            if ((long)*width * *height > SIMPLE_PIXELS) kind = PLAIN;
            return ends_rightly(at, end) ? kind : NOT_PLAIN;
        default:
            if ((marker < APP0 || marker > APP15) && marker != COM) return NOT_PLAIN;
            if (marker == APP1 && !*app1) {
                *app1 = data - content;
                *app1_size = size;
            }
            if (!is_usual_segment(marker, data, size)) kind = PLAIN;
        }
    }
}

/* ------------------------------------------------------------ the resize */

/* Bilinear with antialiasing, as torch resizes bytes: across, rounded to bytes, then down, with
   integer weights that come from the same operations on doubles in the same order.

   Source: torch's aten/src/ATen/native/cpu/UpSampleKernel.cpp, after Pillow's Resample.c. */

#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_AVX2 __attribute__((target("avx2")))
#define HAS_AVX2 __builtin_cpu_supports("avx2")
#else
#define FOR_AVX2
#define HAS_AVX2 0
#endif

typedef uint32_t words8 __attribute__((vector_size(32)));
typedef uint64_t pairs4 __attribute__((vector_size(32)));

enum { BLOCK = sizeof(words8) }; /* bytes that sum_down takes at once */

enum { MAX_SCALE = 64, MAX_SIDE = 1 << 16 }; /* what makes an image smaller than that is torch's */

/* Output i of an axis is the sum of num_taps inputs from first[i] on, each times its weight, over
   2^precision. Weights of inputs that are not there are 0. Up to MAX_SCALE, the weights' rounding
   makes no sum larger than 255, and none reaches 2^31 before it is shifted. */
typedef struct {
    int size, num_taps, precision;
    int *first;
    uint32_t *weights; /* (size, num_taps) */
} Axis;

/* Return zeros, aligned to BLOCK bytes; libjpeg frees them with the image. */
static void *allocate(j_decompress_ptr image, size_t count, size_t size) {
    size_t num_bytes = count * size + BLOCK;
    byte *block = (*image->mem->alloc_large)((j_common_ptr)image, JPOOL_IMAGE, num_bytes);
    memset(block, 0, num_bytes);
    return block + (BLOCK - (uintptr_t)block % BLOCK) % BLOCK;
}

static int minimum(int a, int b) { return a < b ? a : b; }

/* Fill in an output's weights, as doubles. Returns how many are not beyond the input. */
static int weigh(int i, int in, double scale, int max_taps, int *first, double *weights) {
    double support = scale >= 1 ? scale : 1, inverse = scale >= 1 ? 1 / scale : 1;
    double center = scale * (i + 0.5), total = 0;
    int from = (int)(center - support + 0.5);
    *first = from > 0 ? from : 0;
    int count = minimum(minimum((int)(center + support + 0.5), in) - *first, max_taps);
    for (int k = 0; k < count; k++) {
        double distance = (k + *first - center + 0.5) * inverse;
        if (distance < 0) distance = -distance;
        weights[k] = distance < 1 ? 1 - distance : 0;
        total += weights[k];
    }
    for (int k = 0; k < count; k++) weights[k] /= total;
    return count;
}

/* Plan the resize of `in` pixels to `out`. */
static Axis plan(j_decompress_ptr image, int in, int out) {
    double scale = (double)in / out, largest = 0;
    int ceiling = (int)(scale >= 1 ? scale : 1), max_taps;
    if (ceiling < scale) ceiling++;
    max_taps = 2 * ceiling + 1;
    Axis axis = {out, 0, 0, allocate(image, out, sizeof(int)), NULL};
    double *exact = allocate(image, (size_t)out * max_taps, sizeof(double));
    for (int i = 0; i < out; i++) {
        int count = weigh(i, in, scale, max_taps, &axis.first[i], exact + (size_t)i * max_taps);
        if (count > axis.num_taps) axis.num_taps = count;
    }
    for (size_t k = 0; k < (size_t)out * max_taps; k++)
        if (exact[k] > largest) largest = exact[k];
    while (axis.precision < 22 && (int)(0.5 + largest * (1 << (axis.precision + 1))) < 1 << 15)
        axis.precision++;
    axis.weights = allocate(image, (size_t)out * axis.num_taps, sizeof(uint32_t));
    for (int i = 0; i < out; i++)
        for (int k = 0; k < axis.num_taps; k++)
            axis.weights[(size_t)i * axis.num_taps + k] =
                (uint32_t)(0.5 + exact[(size_t)i * max_taps + k] * (1 << axis.precision));
    return axis;
}

/* Lay the weights out for sum_across: those of two taps, for each of a pixel's bytes; the outputs
   turned round if the crop is flipped, and filled up to fours. */
static words8 *pair_weights(j_decompress_ptr image, Axis *axis, int is_flipped) {
    int num_pairs = (axis->num_taps + 1) / 2, filled = (axis->size + 3) / 4 * 4;
    int *first = allocate(image, filled, sizeof(int));
    words8 *pairs = allocate(image, (size_t)filled * num_pairs, sizeof(words8));
    for (int i = 0; i < axis->size; i++) {
        int slot = is_flipped ? axis->size - 1 - i : i;
        const uint32_t *weights = axis->weights + (size_t)i * axis->num_taps;
        first[slot] = axis->first[i];
        for (int k = 0; k < axis->num_taps; k++)
            for (int c = 0; c < 4; c++)
                pairs[(size_t)slot * num_pairs + k / 2][2 * c + k % 2] = weights[k];
    }
    axis->first = first;
    return pairs;
}

/* Sum a row of pixels of four bytes to planes of `filled` bytes. On a big-endian machine the pixels
   would be others, and jpeg.py would not use them. */
static inline void sum_across(const byte *row, const Axis *axis, const words8 *pairs, int channels,
                              int filled, byte *planes) {
    const words8 shifts = {0, 0, 8, 8, 16, 16, 24, 24};
    const uint64_t half = 1u << (axis->precision - 1);
    for (int x = 0; x < filled; x += 4) {
        pairs4 outputs = {0}; /* of each channel, four bytes */
        for (int i = 0; i < 4; i++) {
            const byte *at = row + 4 * (size_t)axis->first[x + i];
            words8 sums = (words8)((pairs4){0} + half); /* of each channel, of even and odd taps */
            for (int k = axis->num_taps; k > 0; k -= 2, at += 8) {
                uint64_t two;
                memcpy(&two, at, 8);
                sums += ((words8)((pairs4){0} + two) >> shifts & 255) * *pairs++;
            }
            pairs4 sum = (pairs4)sums + ((pairs4)sums >> 32);
            outputs |= sum << 32 >> (32 + axis->precision) << (8 * i);
        }
        for (int c = 0; c < channels; c++) {
            uint32_t four = (uint32_t)outputs[c];
            memcpy(planes + (size_t)c * filled + x, &four, 4);
        }
    }
}

/* Do the same where a CPU cannot shift by other numbers in each word of a vector. */
static inline void sum_across_plainly(const byte *row, const Axis *axis, const words8 *pairs,
                                      int channels, int filled, byte *planes) {
    for (int x = 0; x < filled; x++, pairs += (axis->num_taps + 1) / 2) {
        const byte *at = row + 4 * (size_t)axis->first[x];
        uint32_t half = 1u << (axis->precision - 1), sums[4] = {half, half, half, half};
        for (int k = 0; k < axis->num_taps; k++, at += 4)
            for (int c = 0; c < 4; c++) sums[c] += at[c] * pairs[k / 2][k % 2];
        for (int c = 0; c < channels; c++)
            planes[(size_t)c * filled + x] = (byte)(sums[c] >> axis->precision);
    }
}

/* Sum rows of `size` bytes, a multiple of BLOCK, to one. */
static inline void sum_down(const byte **rows, int num_rows, const uint32_t *weights, int precision,
                            size_t size, byte *out) {
    words8 half = (words8){0} + (1u << (precision - 1));
    for (size_t at = 0; at < size; at += BLOCK) {
        words8 sums[4] = {half, half, half, half}; /* of each word's four bytes */
        for (int k = 0; k < num_rows; k++) {
            words8 words;
            memcpy(&words, rows[k] + at, BLOCK);
            for (int i = 0; i < 4; i++) sums[i] += (words >> (8 * i) & 255) * weights[k];
        }
        words8 sum = {0};
        for (int i = 0; i < 4; i++) sum |= sums[i] >> precision << (8 * i);
        memcpy(out + at, &sum, BLOCK);
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

/* Whether no scan of a progressive image lacks: what is made up in its place differs between
   versions. */
static int has_all_scans(j_decompress_ptr image) {
    for (int c = 0; image->progressive_mode && c < image->num_components; c++)
        for (int k = 0; k < DCTSIZE2; k++)
            if (image->coef_bits[c][k] != 0) return 0;
    return 1;
}

/* Read the next rows of a part to (height, width, channels). */
static void read_rows(j_decompress_ptr image, int from, int width, int height, byte *out) {
    size_t pixel_bytes = image->output_components;
    JSAMPROW row = allocate(image, image->output_width, pixel_bytes);
    for (; height-- > 0; out += width * pixel_bytes) {
        jpeg_read_scanlines(image, &row, 1);
        memcpy(out, row + from * pixel_bytes, width * pixel_bytes);
    }
}

/* Read the next rows of a crop, of which the first column is `from` pixels into the decoded ones,
   and resize them to (channels, out_height, out_width). Of the rows that were summed across, only
   those are kept that the next sum down needs. */
static inline __attribute__((always_inline)) void
read_resized(j_decompress_ptr image, int channels, int from, int width, int height, int out_width,
             int out_height, int is_flipped, byte *out, int has_avx2) {
    Axis across = plan(image, width, out_width), down = plan(image, height, out_height);
    words8 *pairs = pair_weights(image, &across, is_flipped);
    int filled = (out_width + 3) / 4 * 4, next = 0;
    size_t row_bytes = ((size_t)channels * filled + BLOCK - 1) / BLOCK * BLOCK;
    size_t plane_bytes = (size_t)out_width * out_height;
    byte *ring = allocate(image, down.num_taps, row_bytes), *sum = allocate(image, 1, row_bytes);
    /* not aligned: libjpeg-turbo writes aligned rows past the caches, and reads would wait */
    JSAMPROW row = (byte *)allocate(image, image->output_width + across.num_taps + 2, 4) + 4;
    const byte *rows[2 * MAX_SCALE + 2];
    for (int y = 0; y < height; y++) {
        jpeg_read_scanlines(image, &row, 1);
        for (int x = channels == 1 ? from + width : 0; x-- > 0;) row[4 * (size_t)x] = row[x];
        (has_avx2 ? sum_across : sum_across_plainly)(row + 4 * (size_t)from, &across, pairs,
                                                     channels, filled,
                                                     ring + y % down.num_taps * row_bytes);
        for (; next < out_height; next++, out += out_width) {
            int first = down.first[next], num_rows = minimum(down.num_taps, height - first);
            if (first + num_rows - 1 > y) break;
            for (int k = 0; k < num_rows; k++)
                rows[k] = ring + (first + k) % down.num_taps * row_bytes;
            sum_down(rows, num_rows, down.weights + (size_t)next * down.num_taps, down.precision,
                     row_bytes, sum);
            for (int c = 0; c < channels; c++)
                memcpy(out + c * plane_bytes, sum + (size_t)c * filled, out_width);
        }
    }
}

FOR_AVX2 static void read_resized_by_avx2(j_decompress_ptr image, int channels, int from, int width,
                                          int height, int out_width, int out_height,
                                          int is_flipped, byte *out) {
    read_resized(image, channels, from, width, height, out_width, out_height, is_flipped, out, 1);
}

static void read_resized_plainly(j_decompress_ptr image, int channels, int from, int width,
                                 int height, int out_width, int out_height, int is_flipped,
                                 byte *out) {
    read_resized(image, channels, from, width, height, out_width, out_height, is_flipped, out, 0);
}

/* Decode a box within a plain JPEG and resize it to (channels, out_height, out_width), 3 or 1 of
   them; if wanted, flipped from left to right. Where both are 0, it becomes (height, width,
   channels) as it is. Returns whether it did. */
int jpeg_crop(const byte *content, size_t num_bytes, int channels, int left, int top, int width,
              int height, int out_width, int out_height, int is_flipped, byte *out) {
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
    int is_resized = out_width != 0 || out_height != 0;
    int num_components = channels == 1 ? 1 : is_resized ? 4 : 3;
    image.out_color_space = channels == 1 ? JCS_GRAYSCALE : is_resized ? JCS_EXT_RGBX : JCS_RGB;
    jpeg_start_decompress(&image);
    int is_inside = left >= 0 && top >= 0 && width > 0 && height > 0 &&
                    width <= (int)image.output_width - left &&
                    height <= (int)image.output_height - top;
    int is_sized = out_width > 0 && out_height > 0 && out_width <= MAX_SIDE &&
                   out_height <= MAX_SIDE && width / MAX_SCALE < out_width &&
                   height / MAX_SCALE < out_height;
    if (!is_inside || (is_resized && !is_sized) || image.output_components != num_components ||
        !has_all_scans(&image))
        leave((j_common_ptr)&image);
    /* columns beside the part, as their colours are interpolated between neighbours */
    JDIMENSION first = left > 2 ? left - 2 : 0;
    JDIMENSION count = left + width + 2 - first;
    if (count > image.output_width - first) count = image.output_width - first;
    jpeg_crop_scanline(&image, &first, &count);
    if (top > 0) jpeg_skip_scanlines(&image, top);
    int from = left - (int)first;
    if (is_resized)
        (HAS_AVX2 ? read_resized_by_avx2 : read_resized_plainly)(&image, channels, from, width,
                                                                 height, out_width, out_height,
                                                                 is_flipped, out);
    else
        read_rows(&image, from, width, height, out);
    jpeg_destroy_decompress(&image);
    return 1;
}
