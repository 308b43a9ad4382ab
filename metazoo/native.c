/* The passes of one block of a convolutional network behind its convolution, on a CPU.

   metazoo.native compiles this file, once for each type that maps are stored in (REAL: what is computed in, INTEGER: as
   wide; with BFLOAT16, maps are stored in half of a float's bits). metazoo.blocks says what the functions compute.

   All maps are channels last: a value's neighbour in memory is the same pixel's next channel, so every inner loop runs
   over channels, LANES at a time; their number must be a multiple of it. Sums over pixels are taken row by row in REAL
   and over rows and images in double, in the same order whatever the number of threads.

   A window is a group of `side` x `side` pixels that is pooled to one (side 1: no pooling). Its code is the number of
   its largest pixel, plus NEGATIVE where that pixel's value is not above 0, so that the activation multiplies it by
   `slope`. Rows and columns that fill no window are normalised like the others and pooled into nothing. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define NEGATIVE 128
#define INLINE static inline __attribute__((always_inline))

typedef REAL real;
typedef real lanes __attribute__((vector_size(LANES * sizeof(real))));
typedef real loose __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef double doubles __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef INTEGER mask __attribute__((vector_size(LANES * sizeof(real))));

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

typedef struct {
    int64_t images, height, width, channels, side;
    int32_t threads;
} Shape;

INLINE int64_t pixels(const Shape *s) { return s->height * s->width; }
INLINE int64_t windows(const Shape *s) { return (s->height / s->side) * (s->width / s->side); }

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

/* Add the sums of a row in REAL to sums in double, and begin the row anew. */
INLINE void end_row(double *total, real *of_row, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        *(doubles *)(total + i) += __builtin_convertvector(load(of_row + i), doubles);
        *(loose *)(of_row + i) = (lanes){0};
    }
}

/* sums[image][k] of every image, into the first one's. */
static void add_images(double *sums, const Shape *s, int64_t k) {
    for (int64_t image = 1; image < s->images; image++)
        for (int64_t i = 0; i < k; i++) sums[i] += sums[image * k + i];
}

/* Of every channel: the sums over pixels of u - u0 and (u - u0) (z - z0). */
static void dense_sums(const stored *u, const real *u0, const stored *z, const real *z0, const Shape *s, double *sums) {
    int64_t channels = s->channels, row = s->width * channels;
#pragma omp parallel for num_threads(s->threads) if (s->threads > 1)
    for (int64_t image = 0; image < s->images; image++) {
        double *total = memset(sums + image * 2 * channels, 0, 2 * channels * sizeof(double));
        real of_row[2 * channels];
        memset(of_row, 0, sizeof of_row);
        for (int64_t y = 0; y < s->height; y++) {
            int64_t at = (image * s->height + y) * row;
            for (int64_t c = 0; c < channels; c += LANES) {
                lanes first = {0}, second = {0}, u_zero = load(u0 + c), z_zero = load(z0 + c);
                for (int64_t x = at + c; x < at + row; x += channels) {
                    lanes value = get(u + x) - u_zero;
                    first += value;
                    second += value * (get(z + x) - z_zero);
                }
                *(loose *)(of_row + c) = first;
                *(loose *)(of_row + channels + c) = second;
            }
            end_row(total, of_row, 2 * channels);
        }
    }
    add_images(sums, s, 2 * channels);
}

/* Of every channel: the sums over windows of g and g (v - v0), with g the gradient dy behind the activation and v the
   chosen pixel. */
INLINE void window_sums_of(
    const stored *dy, const uint8_t *code, const stored *v, const real *v0, real slope, const Shape *s, double *sums, int side
) {
    int64_t channels = s->channels, across = s->width / side, down = s->height / side;
#pragma omp parallel for num_threads(s->threads) if (s->threads > 1)
    for (int64_t image = 0; image < s->images; image++) {
        double *total = memset(sums + image * 2 * channels, 0, 2 * channels * sizeof(double));
        real of_row[2 * channels];
        memset(of_row, 0, sizeof of_row);
        for (int64_t y = 0; y < down; y++) {
            for (int64_t c = 0; c < channels; c += LANES) {
                lanes first = {0}, second = {0}, zero = load(v0 + c);
                for (int64_t x = 0; x < across; x++) {
                    int64_t w = y * across + x, to = (image * down * across + w) * channels + c;
                    mask which = codes(code + to);
                    lanes g = through(get(dy + to), which, slope);
                    first += g;
                    second += g * (chosen(v + image * pixels(s) * channels + window_start(s, w, side) + c, s, which, side) - zero);
                }
                *(loose *)(of_row + c) = first;
                *(loose *)(of_row + channels + c) = second;
            }
            end_row(total, of_row, 2 * channels);
        }
    }
    add_images(sums, s, 2 * channels);
}

/* out = by_z (z - z0) + by_u u + constant, plus by_g g at the chosen pixel of every window; u may be absent. */
INLINE void spread_of(
    stored *out, const stored *z, const real *z0, const stored *u, const stored *dy, const uint8_t *code, real slope,
    const real *by_z, const real *by_u, const real *by_g, const real *constant, const Shape *s, int side, int with_u
) {
    int64_t channels = s->channels, row = s->width * channels, count = windows(s);
    int64_t across = s->width / side * side, down = s->height / side * side;
#pragma omp parallel for num_threads(s->threads) if (s->threads > 1)
    for (int64_t image = 0; image < s->images; image++) {
        int64_t start = image * pixels(s) * channels;
        for (int64_t w = 0; w < count; w++)
            for (int64_t c = 0; c < channels; c += LANES) {
                int64_t from = (image * count + w) * channels + c, window = start + window_start(s, w, side) + c;
                mask which = codes(code + from);
                lanes g = load(by_g + c) * through(get(dy + from), which, slope);
                for (int k = 0; k < side * side; k++) {
                    int64_t at = window + inside(s, k, side);
                    lanes value = load(by_z + c) * (get(z + at) - load(z0 + c)) + load(constant + c);
                    if (with_u) value += load(by_u + c) * get(u + at);
                    put(out + at, value + where((which & ~NEGATIVE) == k, g, (lanes){0}));
                }
            }
        for (int64_t y = 0; y < s->height; y++)
            for (int64_t x = y < down ? across : 0; x < s->width; x++)
                for (int64_t c = 0; c < channels; c += LANES) {
                    int64_t at = start + y * row + x * channels + c;
                    lanes value = load(by_z + c) * (get(z + at) - load(z0 + c)) + load(constant + c);
                    if (with_u) value += load(by_u + c) * get(u + at);
                    put(out + at, value);
                }
    }
}

/* Pool and activate scale (z - mean) + shift; of equal values the first in row-major order is chosen. */
INLINE void pool_of(
    const stored *z, const real *mean, const real *scale, const real *shift, real slope, const Shape *s, stored *y,
    uint8_t *code, int side
) {
    int64_t channels = s->channels, count = windows(s);
#pragma omp parallel for num_threads(s->threads) if (s->threads > 1)
    for (int64_t image = 0; image < s->images; image++)
        for (int64_t w = 0; w < count; w++)
            for (int64_t c = 0; c < channels; c += LANES) {
                const stored *window = z + image * pixels(s) * channels + window_start(s, w, side) + c;
                int64_t to = (image * count + w) * channels + c;
                lanes best = load(scale + c) * (get(window) - load(mean + c)) + load(shift + c);
                mask number = {0};
                for (int k = 1; k < side * side; k++) {
                    lanes value = get(window + inside(s, k, side));
                    value = load(scale + c) * (value - load(mean + c)) + load(shift + c);
                    mask larger = value > best;
                    number = (number & ~larger) | (k & larger);
                    best = where(larger, value, best);
                }
                mask positive = best > 0;
                put(y + to, where(positive, best, best * slope));
                *(bytes *)(code + to) = __builtin_convertvector(number | (NEGATIVE & ~positive), bytes);
            }
}

/* Of every window the chosen pixel of by_z (z - z0) + by_u u + constant, times the activation's slope there. */
INLINE void pick_of(
    const stored *z, const real *z0, const stored *u, const uint8_t *code, real slope, const real *by_z,
    const real *by_u, const real *constant, const Shape *s, stored *out, int side
) {
    int64_t channels = s->channels, count = windows(s);
#pragma omp parallel for num_threads(s->threads) if (s->threads > 1)
    for (int64_t image = 0; image < s->images; image++)
        for (int64_t w = 0; w < count; w++)
            for (int64_t c = 0; c < channels; c += LANES) {
                int64_t to = (image * count + w) * channels + c;
                int64_t at = image * pixels(s) * channels + window_start(s, w, side) + c;
                mask which = codes(code + to);
                lanes value = load(by_z + c) * (chosen(z + at, s, which, side) - load(z0 + c)) + load(constant + c);
                value += load(by_u + c) * chosen(u + at, s, which, side);
                put(out + to, through(value, which, slope));
            }
}

/* The three loops over windows, with the side known to the compiler. */
#define FOR_SIDE(function, ...) (s->side == 2 ? function(__VA_ARGS__, 2) : function(__VA_ARGS__, 1))
#define FOR_SIDE_AND_U(function, with_u, ...) \
    (s->side == 2 ? function(__VA_ARGS__, 2, with_u) : function(__VA_ARGS__, 1, with_u))

/* (y, code, mean, r) of (z, gamma, beta): batch norm by the batch's statistics, pool, activation. Not 0: no memory. */
int32_t normalise_pool(
    const stored *z, const real *gamma, const real *beta, double eps, double slope, Shape shape, stored *y, uint8_t *code,
    real *mean, real *r
) {
    const Shape *s = &shape;
    int64_t channels = s->channels;
    double size = (double)(s->images * pixels(s)), *sums = malloc(s->images * 2 * channels * sizeof(double));
    if (!sums) return 1;
    real first[channels], scale[channels];
    for (int64_t c = 0; c < channels; c += LANES) *(loose *)(first + c) = get(z + c);
    dense_sums(z, first, z, first, s, sums); /* relative to the first pixel: a large mean costs no precision */
    for (int64_t c = 0; c < channels; c++) {
        double offset = sums[c] / size, variance = sums[channels + c] / size - offset * offset;
        double root = 1 / sqrt((variance < 0 ? 0 : variance) + eps);
        mean[c] = (real)(first[c] + offset);
        r[c] = (real)root;
        scale[c] = (real)(gamma[c] * root);
    }
    FOR_SIDE(pool_of, z, mean, scale, beta, (real)slope, s, y, code);
    free(sums);
    return 0;
}

/* (dz, dgamma, dbeta) of dy. */
int32_t normalise_pool_backward(
    const stored *dy, const stored *z, const uint8_t *code, const real *gamma, const real *mean, const real *r,
    double slope, Shape shape, stored *dz, real *dgamma, real *dbeta
) {
    const Shape *s = &shape;
    int64_t channels = s->channels;
    double size = (double)(s->images * pixels(s)), *sums = malloc(s->images * 2 * channels * sizeof(double));
    if (!sums) return 1;
    real by_z[channels], by_g[channels], constant[channels];
    FOR_SIDE(window_sums_of, dy, code, z, mean, (real)slope, s, sums);
    for (int64_t c = 0; c < channels; c++) {
        double k = (double)gamma[c] * r[c], product = sums[channels + c] * r[c];
        dbeta[c] = (real)sums[c];
        dgamma[c] = (real)product;
        by_g[c] = (real)k;
        by_z[c] = (real)(-k * r[c] * product / size);
        constant[c] = (real)(-k * sums[c] / size);
    }
    FOR_SIDE_AND_U(spread_of, 0, dz, z, mean, NULL, dy, code, (real)slope, by_z, NULL, by_g, constant, s);
    free(sums);
    return 0;
}

/* The cotangents (of_dy, of_z, of_gamma) of the backward's inputs from those of its outputs, (u, u_gamma, u_beta). */
int32_t normalise_pool_second(
    const stored *u, const real *u_gamma, const real *u_beta, const stored *dy, const stored *z, const uint8_t *code,
    const real *gamma, const real *mean, const real *r, const real *dgamma, const real *dbeta, double slope, Shape shape,
    stored *of_dy, stored *of_z, real *of_gamma
) {
    const Shape *s = &shape;
    int64_t channels = s->channels, count = s->images * 2 * channels;
    double size = (double)(s->images * pixels(s)), *dense = malloc(2 * count * sizeof(double)), *at_windows = dense + count;
    if (!dense) return 1;
    real zeros[channels], by_z[channels], by_u[channels], by_g[channels], constant[channels];
    real pick_z[channels], pick_u[channels], pick_constant[channels];
    memset(zeros, 0, sizeof zeros);
    dense_sums(u, zeros, z, mean, s, dense);
    FOR_SIDE(window_sums_of, dy, code, u, zeros, (real)slope, s, at_windows);
    for (int64_t c = 0; c < channels; c++) {
        double root = r[c], k = gamma[c] * root, ug = u_gamma ? u_gamma[c] : 0, ub = u_beta ? u_beta[c] : 0;
        double u_mean = dense[c] / size, b = dense[channels + c] * root / size;
        double dy_mean = dbeta[c] / size, a = dgamma[c] / size;
        double bent = at_windows[channels + c] - size * (u_mean * dy_mean + a * b); /* S of metazoo.normalisation */
        double weight_u = -k * a, weight_dy = ug - k * b;
        double g_mean = weight_u * u_mean + weight_dy * dy_mean, g_product = weight_u * b + weight_dy * a;
        of_gamma[c] = (real)(root * bent);
        by_u[c] = (real)(root * weight_u);
        by_g[c] = (real)(root * weight_dy);
        by_z[c] = (real)(-root * root * (g_product + k * bent / size));
        constant[c] = (real)(-root * g_mean);
        pick_u[c] = (real)k;
        pick_z[c] = (real)(root * weight_dy);
        pick_constant[c] = (real)(ub - k * u_mean);
    }
    FOR_SIDE_AND_U(spread_of, 1, of_z, z, mean, u, dy, code, (real)slope, by_z, by_u, by_g, constant, s);
    FOR_SIDE(pick_of, z, mean, u, code, (real)slope, pick_z, pick_u, pick_constant, s, of_dy);
    free(dense);
    return 0;
}
