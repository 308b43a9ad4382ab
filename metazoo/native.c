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
INLINE void add_row(double *total, const real *of_row, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        *(doubles *)(total + i) += __builtin_convertvector(load(of_row + i), doubles);
}

/* sums[image][k] of every image, into the first one's. */
static void add_images(double *sums, const Shape *s, int64_t k) {
    for (int64_t image = 1; image < s->images; image++)
        for (int64_t i = 0; i < k; i++) sums[i] += sums[image * k + i];
}

/* Of every channel: the sums over pixels of u - u0 and (u - u0) (z - z0). */
INLINE void dense_sums(
    const stored *u, const real *u0, const stored *z, const real *z0, double *sums, const Shape *s, int64_t image, int side
) {
    (void)side;
    int64_t channels = s->channels, row = s->width * channels;
    double *total = memset(sums + image * 2 * channels, 0, 2 * channels * sizeof(double));
    real of_row[2 * channels];
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
        add_row(total, of_row, 2 * channels);
    }
}

/* Of every channel: the sums over windows of g and g v, with g the gradient dy behind the activation and v the chosen
   pixel of z - z0. */
INLINE void window_sums(
    const stored *dy, const uint8_t *code, const stored *z, const real *z0, real slope, double *sums, const Shape *s,
    int64_t image, int side
) {
    int64_t channels = s->channels, across = s->width / side, down = s->height / side;
    double *total = memset(sums + image * 2 * channels, 0, 2 * channels * sizeof(double));
    real of_row[2 * channels];
    for (int64_t y = 0; y < down; y++) {
        for (int64_t c = 0; c < channels; c += LANES) {
            const stored *window = z + (image * s->height + y * side) * s->width * channels + c;
            int64_t from = (image * down + y) * across * channels + c;
            lanes first = {0}, second = {0}, zero = load(z0 + c);
            for (int64_t x = 0; x < across; x++, from += channels, window += side * channels) {
                mask which = codes(code + from);
                lanes g = through(get(dy + from), which, slope);
                first += g;
                second += g * (chosen(window, s, which, side) - zero);
            }
            *(loose *)(of_row + c) = first;
            *(loose *)(of_row + channels + c) = second;
        }
        add_row(total, of_row, 2 * channels);
    }
}

/* out = by_z (z - z0) + constant + by_u u (with_u), plus by_g g at the chosen pixel of every window. */
INLINE void spread(
    int with_u, stored *out, const stored *z, const real *z0, const stored *u, const stored *dy, const uint8_t *code,
    real slope, const real *by_z, const real *by_u, const real *by_g, const real *constant, const Shape *s, int64_t image,
    int side
) {
    int64_t channels = s->channels, row = s->width * channels, start = image * pixels(s) * channels, count = windows(s);
    int64_t across = s->width / side * side, down = s->height / side * side;
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

/* Pool and activate scale (z - mean) + shift. */
INLINE void pool(
    const stored *z, const real *mean, const real *scale, const real *shift, real slope, stored *y, uint8_t *code,
    const Shape *s, int64_t image, int side
) {
    int64_t channels = s->channels, count = windows(s);
    for (int64_t w = 0; w < count; w++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const stored *window = z + image * pixels(s) * channels + window_start(s, w, side) + c;
            int64_t to = (image * count + w) * channels + c;
            lanes values[4];
            for (int k = 0; k < side * side; k++)
                values[k] = load(scale + c) * (get(window + inside(s, k, side)) - load(mean + c)) + load(shift + c);
            put_largest(values, 1, slope, y + to, code + to, side);
        }
}

/* Of every window the chosen pixel of by_z (z - z0) + by_u u + constant, times the activation's slope there. */
INLINE void pick(
    const stored *z, const real *z0, const stored *u, const uint8_t *code, real slope, const real *by_z,
    const real *by_u, const real *constant, stored *out, const Shape *s, int64_t image, int side
) {
    int64_t channels = s->channels, count = windows(s);
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
    EACH_IMAGE(dense_sums, z, first, z, first, sums, s)
    add_images(sums, s, 2 * channels); /* relative to the first pixel: a large mean costs no precision */
    for (int64_t c = 0; c < channels; c++) {
        double offset = sums[c] / size, variance = sums[channels + c] / size - offset * offset;
        double root = 1 / sqrt((variance < 0 ? 0 : variance) + eps);
        mean[c] = (real)(first[c] + offset);
        r[c] = (real)root;
        scale[c] = (real)(gamma[c] * root);
    }
    EACH_IMAGE(pool, z, mean, scale, beta, (real)slope, y, code, s)
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
    EACH_IMAGE(window_sums, dy, code, z, mean, (real)slope, sums, s)
    add_images(sums, s, 2 * channels);
    for (int64_t c = 0; c < channels; c++) {
        double k = (double)gamma[c] * r[c], product = sums[channels + c] * r[c];
        dbeta[c] = (real)sums[c];
        dgamma[c] = (real)product;
        by_g[c] = (real)k;
        by_z[c] = (real)(-k * r[c] * product / size);
        constant[c] = (real)(-k * sums[c] / size);
    }
    EACH_IMAGE(spread, 0, dz, z, mean, NULL, dy, code, (real)slope, by_z, NULL, by_g, constant, s)
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
    EACH_IMAGE(dense_sums, u, zeros, z, mean, dense, s)
    EACH_IMAGE(window_sums, dy, code, u, zeros, (real)slope, at_windows, s)
    add_images(dense, s, 2 * channels);
    add_images(at_windows, s, 2 * channels);
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
    EACH_IMAGE(spread, 1, of_z, z, mean, u, dy, code, (real)slope, by_z, by_u, by_g, constant, s)
    EACH_IMAGE(pick, z, mean, u, code, (real)slope, pick_z, pick_u, pick_constant, of_dy, s)
    free(dense);
    return 0;
}

/* The first block's convolution, 3x3, of images whose patches are short: x holds the images [height + 2, width + 2,
   depth], zeros around them included, with LANES values to spare behind the last. A patch is three stretches of 3 depth
   values each; 3 depth is at most LANES. height, width and channels are those of the convolution's output. */

/* Weight times patch plus shift, for every pixel of a window and `blocks` times LANES channels from c on; weights are
   [channel / LANES][patch][LANES]. */
INLINE void convolve_window(
    const real *corner, int64_t line, int64_t depth, const real *weights, const real *shift, int64_t c, lanes *values,
    int side, int blocks
) {
    int64_t stretch = 3 * depth, block = 3 * stretch * LANES;
    const real *w = weights + c / LANES * block;
    for (int k = 0; k < side * side; k++)
        for (int b = 0; b < blocks; b++) values[k * blocks + b] = load(shift + c + b * LANES);
    for (int row = 0; row < 3; row++)
        for (int64_t q = 0; q < stretch; q++, w += LANES) {
            lanes weight[4];
            for (int b = 0; b < blocks; b++) weight[b] = load(w + b * block);
            for (int k = 0; k < side * side; k++) {
                real pixel = corner[(k / side + row) * line + (k % side) * depth + q];
                for (int b = 0; b < blocks; b++) values[k * blocks + b] += weight[b] * pixel;
            }
        }
}

/* For `blocks` times LANES channels of every window: the largest value, activated, and its code; or, with `chosen_by`
   a code already, the value at the coded pixel times the activation's slope there. */
INLINE void some_patches(
    const real *x, int64_t depth, const real *weights, const real *shift, real slope, stored *y, uint8_t *code,
    const uint8_t *chosen_by, const Shape *s, int64_t c, int64_t image, int side, int blocks
) {
    int64_t line = (s->width + 2) * depth, across = s->width / side, count = windows(s);
    for (int64_t w = 0; w < count; w++) {
        const real *corner = x + (image * (s->height + 2) + w / across * side) * line + w % across * side * depth;
        int64_t to = (image * count + w) * s->channels + c;
        lanes values[4 * 4];
        convolve_window(corner, line, depth, weights, shift, c, values, side, blocks);
        for (int b = 0; b < blocks; b++, to += LANES) {
            if (!chosen_by) {
                put_largest(values + b, blocks, slope, y + to, code + to, side);
                continue;
            }
            mask which = codes(chosen_by + to);
            lanes value = values[b];
            for (int k = 1; k < side * side; k++) value = where((which & ~NEGATIVE) == k, values[k * blocks + b], value);
            put(y + to, through(value, which, slope));
        }
    }
}

INLINE void image_patches(
    const real *x, int64_t depth, const real *weights, const real *shift, real slope, stored *y, uint8_t *code,
    const uint8_t *chosen_by, const Shape *s, int64_t image, int side
) {
    int64_t c = 0;
#define PATCHES(blocks) \
    some_patches(x, depth, weights, shift, slope, y, code, chosen_by, s, c, image, side, blocks), c += (blocks) * LANES
#ifdef __AVX512F__ /* with that many registers, four or three blocks of channels share the loads of a pixel */
    while (s->channels - c >= 4 * LANES && (s->channels - c) % (3 * LANES)) PATCHES(4);
    while (s->channels - c >= 3 * LANES) PATCHES(3);
#endif
    while (c < s->channels) PATCHES(1);
}

/* y and code of weights and shift; with `chosen_by`, y alone, at the pixels that it names. */
int32_t patches(
    const real *x, int64_t depth, const real *weights, const real *shift, double slope, Shape shape, stored *y,
    uint8_t *code, const uint8_t *chosen_by
) {
    const Shape *s = &shape;
    EACH_IMAGE(image_patches, x, depth, weights, shift, (real)slope, y, code, chosen_by, s)
    return 0;
}

/* Of every channel: the sums over windows of g times the three stretches of the coded pixel's patch, and of g, as
   [channel][4][LANES]. */
INLINE void patch_sums(
    const real *x, int64_t depth, const stored *dy, const uint8_t *code, real slope, double *sums, const Shape *s,
    int64_t image, int side
) {
    int64_t channels = s->channels, line = (s->width + 2) * depth, across = s->width / side, down = s->height / side;
    double *total = memset(sums + image * channels * 4 * LANES, 0, channels * 4 * LANES * sizeof(double));
    real of_row[across * channels];
    for (int64_t y = 0; y < down; y++) {
        const real *row = x + (image * (s->height + 2) + y * side) * line;
        int64_t from = (image * down + y) * across * channels;
        for (int64_t i = 0; i < across * channels; i += LANES)
            *(loose *)(of_row + i) = through(get(dy + from + i), codes(code + from + i), slope);
        for (int64_t c = 0; c < channels; c++) {
            lanes stretches[4] = {{0}, {0}, {0}, {0}};
            real sum = 0;
            for (int64_t w = 0; w < across; w++) {
                real g = of_row[w * channels + c];
                int which = code[from + w * channels + c] & ~NEGATIVE;
                const real *patch = row + which / side * line + (w * side + which % side) * depth;
                for (int k = 0; k < 3; k++) stretches[k] += g * load(patch + k * line);
                sum += g;
            }
            stretches[3][0] = sum;
            add_row(total + c * 4 * LANES, (const real *)stretches, 4 * LANES);
        }
    }
}

/* Of every channel: the sums over windows of g times the coded pixel's patch, [channel][patch], and of g. */
int32_t patches_sums(
    const real *x, int64_t depth, const stored *dy, const uint8_t *code, double slope, Shape shape, double *by_patch,
    double *sum
) {
    const Shape *s = &shape;
    int64_t channels = s->channels, stretch = 3 * depth, each = channels * 4 * LANES;
    double *sums = malloc(s->images * each * sizeof(double));
    if (!sums) return 1;
    EACH_IMAGE(patch_sums, x, depth, dy, code, (real)slope, sums, s)
    add_images(sums, s, each);
    for (int64_t c = 0; c < channels; c++) {
        const double *of_channel = sums + c * 4 * LANES;
        for (int64_t q = 0; q < 3 * stretch; q++)
            by_patch[c * 3 * stretch + q] = of_channel[q / stretch * LANES + q % stretch];
        sum[c] = of_channel[3 * LANES];
    }
    free(sums);
    return 0;
}

/* Of one image, for each two rows of a patch (0 0, 0 1, 0 2, 1 1, 1 2, 2 2): the sums over patches of each value of the
   first times the second, [pair][value][LANES]; behind them the sums of the three rows. */
INLINE void image_moments(const real *x, int64_t depth, double *sums, const Shape *s, int64_t image) {
    int64_t line = (s->width + 2) * depth, stretch = 3 * depth, each = 7 * LANES * LANES;
    double *total = memset(sums + image * each, 0, each * sizeof(double));
    for (int64_t y = 0; y < s->height; y++) {
        const real *corner = x + (image * (s->height + 2) + y) * line;
        double *to = total;
        for (int first = 0; first < 3; first++)
            for (int second = first; second < 3; second++, to += LANES * LANES) {
                const real *a = corner + first * line, *b = corner + second * line;
                lanes products[LANES] = {{0}};
                for (int64_t i = 0; i < s->width * depth; i += depth)
                    for (int64_t q = 0; q < stretch; q++) products[q] += a[i + q] * load(b + i);
                add_row(to, (const real *)products, stretch * LANES);
            }
        for (int row = 0; row < 3; row++, to += LANES) {
            lanes sum = {0};
            for (int64_t i = 0; i < s->width * depth; i += depth) sum += load(corner + row * line + i);
            add_row(to, (const real *)&sum, LANES);
        }
    }
}

/* The sums over all patches p of p p' (second, [patch][patch]) and of p (first). */
int32_t patches_moments(const real *x, int64_t depth, Shape shape, double *second, double *first) {
    const Shape *s = &shape;
    int64_t stretch = 3 * depth, each = 7 * LANES * LANES;
    double *sums = malloc(s->images * each * sizeof(double)), *pair = sums;
    if (!sums) return 1;
#pragma omp parallel for num_threads(s->threads) if (s->threads > 1)
    for (int64_t image = 0; image < s->images; image++) {
        if (depth == 3) image_moments(x, 3, sums, s, image); /* known to the compiler, it stays in registers */
        else if (depth == 1) image_moments(x, 1, sums, s, image);
        else image_moments(x, depth, sums, s, image);
    }
    add_images(sums, s, each);
    for (int64_t a = 0; a < 3; a++)
        for (int64_t b = a; b < 3; b++, pair += LANES * LANES)
            for (int64_t i = 0; i < stretch; i++)
                for (int64_t j = 0; j < stretch; j++) {
                    int64_t row = a * stretch + i, column = b * stretch + j;
                    second[row * 3 * stretch + column] = second[column * 3 * stretch + row] = pair[i * LANES + j];
                }
    for (int64_t i = 0; i < 3 * stretch; i++) first[i] = pair[i / stretch * LANES + i % stretch];
    free(sums);
    return 0;
}
