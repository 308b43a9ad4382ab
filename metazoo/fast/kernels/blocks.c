/* The passes of one block of a convolutional network behind its convolution: batch norm, pooling and activation.

   Sums over pixels are taken row by row in REAL and over rows and images in double. */

#include "kernels.h"

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
