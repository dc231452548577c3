"""Files behind a URL: requests, their checks, a cache on local disk, and what fills it."""
