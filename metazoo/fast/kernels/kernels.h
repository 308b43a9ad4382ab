/* What the kernels share: vectors of channels, maps as they lie in memory, and windows.

   metazoo.fast.native compiles these files together, once for each type that maps are stored in (REAL: what is computed in,
   INTEGER: as wide; with BFLOAT16, maps are stored in half of a float's bits). Each belongs to the module of its name,
   which says what its functions compute.

   All maps are channels last: a value's neighbour in memory is the same pixel's next channel, so every inner loop runs
   over channels, LANES at a time: as many as the processor's vectors hold. Channels come in GROUPs, which LANES divides.
   Results are the same whatever the number of threads.

   A window is a group of `side` x `side` pixels that is pooled to one (side 1: no pooling). Its code is the number of
   its largest pixel, plus NEGATIVE where that pixel's value is not above 0, so that the activation multiplies it by
   `slope`. Rows and columns that fill no window are normalised like the others and pooled into nothing. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#if defined(__AVX512F__)
#define VECTOR 64
#elif defined(__AVX2__)
#define VECTOR 32
#else
#define VECTOR 16
#endif
/* Vectors that the processor can hold in registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#define LANES ((int64_t)(VECTOR / sizeof(REAL)))
#define GROUP 16
#define NEGATIVE 128
#define INLINE static inline __attribute__((always_inline))

typedef REAL real;
typedef real lanes __attribute__((vector_size(VECTOR)));
typedef real loose __attribute__((vector_size(VECTOR), aligned(sizeof(real)), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef INTEGER mask __attribute__((vector_size(VECTOR)));

#ifdef BFLOAT16
typedef uint16_t stored;
typedef uint16_t halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));

INLINE lanes get(const stored *at) { return (lanes)(__builtin_convertvector(*(const halves *)at, words) << 16); }
INLINE void put(stored *at, lanes value) { /* to the nearest, of two as near the even one */
    words bits = (words)value;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    mask number = value == value;
    rounded = (rounded & (words)number) | (0x7fc0 & ~(words)number);
    *(halves *)at = __builtin_convertvector(rounded, halves);
}
#else
typedef real stored;

INLINE lanes get(const stored *at) { return *(const loose *)at; }
INLINE void put(stored *at, lanes value) { *(loose *)at = value; }
#endif

INLINE lanes load(const real *at) { return *(const loose *)at; }
INLINE lanes where(mask condition, lanes yes, lanes no) {
    return (lanes)(((mask)yes & condition) | ((mask)no & ~condition));
}
INLINE mask codes(const uint8_t *at) { return __builtin_convertvector(*(const bytes *)at, mask); }
INLINE lanes through(lanes value, mask code, real slope) {
    return where((code & NEGATIVE) != 0, value * slope, value);
}

/* Room for so many, or NULL. */
INLINE real *reals(int64_t count) { return aligned_alloc(64, (count * sizeof(real) + 63) / 64 * 64); }

typedef struct {
    int64_t images, height, width, channels, side;
    int32_t threads;
} Shape;

INLINE int64_t pixels(const Shape *s) { return s->height * s->width; }
INLINE int64_t windows(const Shape *s) { return (s->height / s->side) * (s->width / s->side); }

/* function(..., image, side) for every image, with the side known to the compiler. */
#define EACH_IMAGE(function, ...)                                                            \
    _Pragma("omp parallel for num_threads(s->threads) if (s->threads > 1)")                  \
    for (int64_t image = 0; image < s->images; image++) {                                    \
        if (s->side == 2) function(__VA_ARGS__, image, 2); else function(__VA_ARGS__, image, 1); \
    }

/* Where the first pixel of window number w begins in an image. */
INLINE int64_t window_start(const Shape *s, int64_t w, int side) {
    int64_t across = s->width / side;
    return ((w / across) * side * s->width + (w % across) * side) * s->channels;
}

/* Where pixel k of a window lies behind its first. */
INLINE int64_t inside(const Shape *s, int k, int side) { return ((k / side) * s->width + k % side) * s->channels; }

/* The coded pixels of the window that begins at `window`. */
INLINE lanes chosen(const stored *window, const Shape *s, mask code, int side) {
    lanes value = get(window);
    for (int k = 1; k < side * side; k++) value = where((code & ~NEGATIVE) == k, get(window + inside(s, k, side)), value);
    return value;
}

/* Add the sums of a row in REAL to sums in double. */
INLINE void add_row(double *restrict total, const real *restrict of_row, int64_t count) {
    for (int64_t i = 0; i < count; i++) total[i] += of_row[i];
}

/* sums[image][k] of every image, into the first one's. */
INLINE void add_images(double *sums, const Shape *s, int64_t k) {
    for (int64_t image = 1; image < s->images; image++)
        for (int64_t i = 0; i < k; i++) sums[i] += sums[image * k + i];
}

/* Of the values of a window, number k of block b in values[k * blocks + b], the largest one, activated, and its code;
   of equal ones the first in row-major order. */
INLINE void put_largest(const lanes *values, int blocks, real slope, stored *y, uint8_t *code, int side) {
    lanes best = values[0];
    mask number = {0};
    for (int k = 1; k < side * side; k++) {
        mask larger = values[k * blocks] > best;
        number = (number & ~larger) | (k & larger);
        best = where(larger, values[k * blocks], best);
    }
    mask positive = best > 0;
    put(y, where(positive, best, best * slope));
    *(bytes *)code = __builtin_convertvector(number | (NEGATIVE & ~positive), bytes);
}
