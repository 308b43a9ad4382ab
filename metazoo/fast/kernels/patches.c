/* The first block on images, by their 3x3 patches, which are short: x holds the images [height + 2, width + 2,
   depth], zeros around them included, with GROUP values to spare behind the last. A patch is three stretches of 3 depth
   values each; 3 depth is at most GROUP. height, width and channels are those of the convolution's output. */

#include "kernels.h"

#define PIECES (GROUP / LANES) /* vectors that a stretch takes */
#define LONGEST (3 * GROUP) /* patch */

/* Weight times patch plus shift, for every pixel of a window and `blocks` times LANES channels from c on; weights are
   [channel / GROUP][patch][GROUP]. */
INLINE void convolve_window(
    const real *corner, int64_t line, int64_t depth, const real *weights, const real *shift, int64_t c, lanes *values,
    int side, int blocks
) {
    int64_t stretch = 3 * depth;
    const real *of_block[4];
    for (int b = 0; b < blocks; b++) {
        int64_t channel = c + b * LANES;
        of_block[b] = weights + channel / GROUP * 3 * stretch * GROUP + channel % GROUP;
        for (int k = 0; k < side * side; k++) values[k * blocks + b] = load(shift + channel);
    }
    for (int row = 0; row < 3; row++)
        for (int64_t q = 0; q < stretch; q++) {
            lanes weight[4];
            for (int b = 0; b < blocks; b++) weight[b] = load(of_block[b] + (row * stretch + q) * GROUP);
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
    /* with that many registers, four or three blocks of channels share the loads of a pixel, else two */
    while (REGISTERS == 32 && s->channels - c >= 4 * LANES && (s->channels - c) % (3 * LANES)) PATCHES(4);
    while (REGISTERS == 32 && s->channels - c >= 3 * LANES) PATCHES(3);
    while (s->channels - c >= 2 * LANES) PATCHES(2);
    while (c < s->channels) PATCHES(1);
}

/* y and code of weights and shift; with `chosen_by`, y alone, at the pixels that it names. */
static void patches(
    const real *x, int64_t depth, const real *weights, const real *shift, real slope, stored *y, uint8_t *code,
    const uint8_t *chosen_by, const Shape *s
) {
    EACH_IMAGE(image_patches, x, depth, weights, shift, slope, y, code, chosen_by, s)
}

/* A weight [depth][3][3] in the order of a patch, and back. */
INLINE void in_patch_order(const real *weight, int64_t depth, double *patch) {
    for (int64_t c = 0; c < depth; c++)
        for (int k = 0; k < 9; k++) patch[k * depth + c] = weight[c * 9 + k];
}
INLINE void in_weight_order(const double *patch, int64_t depth, real *weight) {
    for (int64_t c = 0; c < depth; c++)
        for (int k = 0; k < 9; k++) weight[c * 9 + k] = (real)patch[k * depth + c];
}

INLINE double dot(const double *a, const double *b, int64_t size) {
    double sum = 0;
    for (int64_t q = 0; q < size; q++) sum += a[q] * b[q];
    return sum;
}

/* A row times a matrix [size][size]. */
INLINE void row_times(const double *row, const double *matrix, int64_t size, double *product) {
    memset(product, 0, size * sizeof(double));
    for (int64_t q = 0; q < size; q++)
        for (int64_t p = 0; p < size; p++) product[p] += row[q] * matrix[q * size + p];
}

/* The weights of channel c, into [channel / GROUP][patch][GROUP]. */
INLINE void pack(const double *row, int64_t size, double scale, int64_t c, real *weights) {
    real *to = weights + c / GROUP * size * GROUP + c % GROUP;
    for (int64_t q = 0; q < size; q++) to[q * GROUP] = (real)(scale * row[q]);
}

/* (y, code) of (weight, gamma, beta), with the mean and covariance of all patches. Kept of every channel: the weight in
   the order of a patch, that times the covariance, and r. */
int32_t patches_forward(
    const real *x, int64_t depth, const double *mean, const double *covariance, const real *weight, const real *gamma,
    const real *beta, double eps, double slope, Shape shape, stored *y, uint8_t *code, double *kept
) {
    int64_t channels = shape.channels, size = 9 * depth;
    real *weights = reals(channels * (size + 1)), *shift = weights + channels * size;
    if (!weights) return 1;
    for (int64_t c = 0; c < channels; c++) {
        double *filter = kept + c * (2 * size + 1), *spread = filter + size;
        in_patch_order(weight + c * size, depth, filter);
        row_times(filter, covariance, size, spread);
        double r = spread[size] = 1 / sqrt(dot(filter, spread, size) + eps);
        pack(filter, size, gamma[c] * r, c, weights);
        shift[c] = (real)(beta[c] - gamma[c] * r * dot(filter, mean, size));
    }
    patches(x, depth, weights, shift, (real)slope, y, code, NULL, &shape);
    free(weights);
    return 0;
}

/* Of every channel: the sums over windows of g times the three stretches of the coded pixel's patch, and of g, as
   [channel][4][GROUP]. */
INLINE void patch_sums(
    const real *x, int64_t depth, const stored *dy, const uint8_t *code, real slope, double *sums, const Shape *s,
    int64_t image, int side
) {
    int64_t channels = s->channels, line = (s->width + 2) * depth, across = s->width / side, down = s->height / side;
    double *total = memset(sums + image * channels * 4 * GROUP, 0, channels * 4 * GROUP * sizeof(double));
    real of_row[across * channels];
    for (int64_t y = 0; y < down; y++) {
        const real *row = x + (image * (s->height + 2) + y * side) * line;
        int64_t from = (image * down + y) * across * channels;
        for (int64_t i = 0; i < across * channels; i += LANES)
            *(loose *)(of_row + i) = through(get(dy + from + i), codes(code + from + i), slope);
        for (int64_t c = 0; c < channels; c++) {
            lanes stretches[4 * PIECES];
            memset(stretches, 0, sizeof stretches);
            real sum = 0;
            for (int64_t w = 0; w < across; w++) {
                real g = of_row[w * channels + c];
                int which = code[from + w * channels + c] & ~NEGATIVE;
                const real *patch = row + which / side * line + (w * side + which % side) * depth;
                for (int k = 0; k < 3; k++)
                    for (int p = 0; p < PIECES; p++) stretches[k * PIECES + p] += g * load(patch + k * line + p * LANES);
                sum += g;
            }
            stretches[3 * PIECES][0] = sum;
            add_row(total + c * 4 * GROUP, (const real *)stretches, 4 * GROUP);
        }
    }
}

/* (dw, dgamma, dbeta) of dy. Kept of every channel, behind what the forward pass has: the sum of g times the patch less
   the mean patch, and that times the weight. */
int32_t patches_backward(
    const real *x, int64_t depth, const double *mean, const stored *dy, const uint8_t *code, const real *gamma,
    const double *kept, double slope, Shape shape, real *dw, real *dgamma, real *dbeta, double *kept_too
) {
    const Shape *s = &shape;
    int64_t channels = s->channels, stretch = 3 * depth, size = 3 * stretch, each = channels * 4 * GROUP;
    double *sums = malloc(s->images * each * sizeof(double)), row[LONGEST];
    if (!sums) return 1;
    EACH_IMAGE(patch_sums, x, depth, dy, code, (real)slope, sums, s)
    add_images(sums, s, each);
    for (int64_t c = 0; c < channels; c++) {
        const double *of_channel = sums + c * 4 * GROUP, *filter = kept + c * (2 * size + 1), *spread = filter + size;
        double *a = kept_too + c * (size + 1), total = of_channel[3 * GROUP], r = spread[size];
        for (int64_t q = 0; q < size; q++) a[q] = of_channel[q / stretch * GROUP + q % stretch] - total * mean[q];
        double e = a[size] = dot(a, filter, size);
        for (int64_t q = 0; q < size; q++) row[q] = gamma[c] * r * (a[q] - r * r * e * spread[q]);
        in_weight_order(row, depth, dw + c * size);
        dgamma[c] = (real)(r * e);
        dbeta[c] = (real)total;
    }
    free(sums);
    return 0;
}

/* The cotangents (of_dy, of_w, of_gamma) of the backward's inputs from those of its outputs, (u, u_gamma, u_beta), of
   which NULL stands for zeros. */
int32_t patches_second(
    const real *x, int64_t depth, const double *mean, const double *covariance, const real *u, const real *u_gamma,
    const real *u_beta, const uint8_t *code, const real *gamma, const double *kept, const double *kept_too, double slope,
    Shape shape, stored *of_dy, real *of_w, real *of_gamma
) {
    int64_t channels = shape.channels, size = 9 * depth;
    real *weights = reals(channels * (size + 1)), *shift = weights + channels * size;
    if (!weights) return 1;
    for (int64_t c = 0; c < channels; c++) {
        const double *filter = kept + c * (2 * size + 1), *spread = filter + size, *a = kept_too + c * (size + 1);
        double turned[LONGEST] = {0}, product[LONGEST], row[LONGEST];
        if (u) in_patch_order(u + c * size, depth, turned);
        row_times(turned, covariance, size, product);
        double r = spread[size], e = a[size], scale = gamma[c] * r, bent = r * r * e;
        double ug = u_gamma ? u_gamma[c] : 0, ub = u_beta ? u_beta[c] : 0;
        double u_a = dot(turned, a, size), u_spread = dot(turned, spread, size);
        double k = ug * r - scale * r * r * u_spread, of_r = gamma[c] * (u_a - 3 * bent * u_spread) + ug * e;
        for (int64_t q = 0; q < size; q++) row[q] = scale * turned[q] + k * filter[q];
        pack(row, size, 1, c, weights);
        shift[c] = (real)(ub - dot(row, mean, size));
        for (int64_t q = 0; q < size; q++) row[q] = k * a[q] - scale * bent * product[q] - r * r * r * of_r * spread[q];
        in_weight_order(row, depth, of_w + c * size);
        of_gamma[c] = (real)(r * (u_a - bent * u_spread));
    }
    patches(x, depth, weights, shift, (real)slope, of_dy, NULL, code, &shape);
    free(weights);
    return 0;
}

/* Of one image, for each two rows of a patch (0 0, 0 1, 0 2, 1 1, 1 2, 2 2): the sums over patches of each value of the
   first times the second, [pair][value][GROUP]; behind them the sums of the three rows. */
INLINE void image_moments(const real *x, int64_t depth, double *sums, const Shape *s, int64_t image) {
    int64_t line = (s->width + 2) * depth, stretch = 3 * depth, each = 7 * GROUP * GROUP;
    double *total = memset(sums + image * each, 0, each * sizeof(double));
    for (int64_t y = 0; y < s->height; y++) {
        const real *corner = x + (image * (s->height + 2) + y) * line;
        double *to = total;
        for (int first = 0; first < 3; first++)
            for (int second = first; second < 3; second++, to += GROUP * GROUP) {
                const real *a = corner + first * line, *b = corner + second * line;
                lanes products[GROUP * PIECES];
                memset(products, 0, sizeof products);
                for (int64_t i = 0; i < s->width * depth; i += depth)
                    for (int64_t q = 0; q < stretch; q++)
                        for (int p = 0; p < PIECES; p++) products[q * PIECES + p] += a[i + q] * load(b + i + p * LANES);
                add_row(to, (const real *)products, stretch * GROUP);
            }
        for (int row = 0; row < 3; row++, to += GROUP)
            for (int64_t i = 0; i < s->width * depth; i += depth)
                for (int64_t q = 0; q < stretch; q++) to[q] += corner[row * line + i + q];
    }
}

/* The sums over all patches p of p p' (second, [patch][patch]) and of p (first). */
int32_t patches_moments(const real *x, int64_t depth, Shape shape, double *second, double *first) {
    const Shape *s = &shape;
    int64_t stretch = 3 * depth, each = 7 * GROUP * GROUP;
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
        for (int64_t b = a; b < 3; b++, pair += GROUP * GROUP)
            for (int64_t i = 0; i < stretch; i++)
                for (int64_t j = 0; j < stretch; j++) {
                    int64_t row = a * stretch + i, column = b * stretch + j;
                    second[row * 3 * stretch + column] = second[column * 3 * stretch + row] = pair[i * GROUP + j];
                }
    for (int64_t i = 0; i < 3 * stretch; i++) first[i] = pair[i / stretch * GROUP + i % stretch];
    free(sums);
    return 0;
}
