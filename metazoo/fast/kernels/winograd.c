/* The 3x3 convolution and its two gradients by Winograd's minimal filtering, F(4x4, 3x3), on a CPU.

   Four by four outputs take 36 multiplications a pair of channels instead of 144: maps and filters are evaluated at the
   points 0, A, -A, B, -B and infinity in both directions, multiplied there, and interpolated back (Lavin & Gray, CVPR
   2016). With the usual points 0, 1, -1, 2, -2 the rounding error would be twice as large as with these, and it is
   about twice that of summing products one by one.

   metazoo.fast.native compiles this file with native.c; metazoo.fast.winograd says what the functions compute. Maps are channels
   last, weights [F][C][3][3], and both numbers of channels are multiples of GROUP. What lies in points is [36][...]. */

#include "kernels.h"

#define POINTS 36
#define A ((real)0.6875)
#define B ((real)1.5)
#define A2 (A * A)
#define B2 (B * B)
#define N0 (1 / (A2 * B2)) /* the weights of a filter's values at 0, +-A and +-B in the interpolation */
#define NA (1 / (2 * A2 * (A2 - B2)))
#define NB (1 / (2 * B2 * (B2 - A2)))

typedef struct {
    int64_t images, height, width, channels, filters, padding;
    int32_t threads;
} Maps; /* those that are convolved, [images, height, width, channels], and what comes of them */

INLINE int64_t out_height(const Maps *m) { return m->height + 2 * m->padding - 2; }
INLINE int64_t out_width(const Maps *m) { return m->width + 2 * m->padding - 2; }
INLINE int64_t tiles_across(const Maps *m) { return (out_width(m) + 3) / 4; }
INLINE int64_t tiles_down(const Maps *m) { return (out_height(m) + 3) / 4; }
INLINE int64_t tiles(const Maps *m) { return m->images * tiles_down(m) * tiles_across(m); }

/* Six pixels in points. */
INLINE void six_in_points(const lanes *d, lanes *v) {
    lanes even_a = d[4] - B2 * d[2], odd_a = A * (d[3] - B2 * d[1]);
    lanes even_b = d[4] - A2 * d[2], odd_b = B * (d[3] - A2 * d[1]);
    v[0] = A2 * B2 * d[0] - (A2 + B2) * d[2] + d[4];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = A2 * B2 * d[1] - (A2 + B2) * d[3] + d[5];
}

/* Four outputs of what is in points. */
INLINE void four_of_points(const lanes *m, lanes *y) {
    lanes even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = A * odd_a + B * odd_b;
    y[2] = A2 * even_a + B2 * even_b;
    y[3] = A * A2 * odd_a + B * B2 * odd_b + m[5];
}

/* Its transpose: four gradients of outputs in points. */
INLINE void four_in_points(const lanes *g, lanes *u) {
    lanes even_a = g[0] + A2 * g[2], odd_a = A * (g[1] + A2 * g[3]);
    lanes even_b = g[0] + B2 * g[2], odd_b = B * (g[1] + B2 * g[3]);
    u[0] = g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[3];
}

/* Three weights in points. */
INLINE void three_in_points(const lanes *w, lanes *u) {
    lanes even_a = NA * (w[0] + A2 * w[2]), odd_a = NA * A * w[1];
    lanes even_b = NB * (w[0] + B2 * w[2]), odd_b = NB * B * w[1];
    u[0] = N0 * w[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = w[2];
}

/* Its transpose: the gradients of three weights of what is in points. */
INLINE void three_of_points(const lanes *s, lanes *q) {
    lanes even_a = NA * (s[1] + s[2]), odd_a = NA * (s[1] - s[2]);
    lanes even_b = NB * (s[3] + s[4]), odd_b = NB * (s[3] - s[4]);
    q[0] = N0 * s[0] + even_a + even_b;
    q[1] = A * odd_a + B * odd_b;
    q[2] = A2 * even_a + B2 * even_b + s[5];
}

/* A transformation of `from` values to `to` values in both directions, of READ(i, j) to WRITE(k, l, value). */
#define BOTH_DIRECTIONS(step, from, to, READ, WRITE)                                     \
    do {                                                                                 \
        lanes half[(to) * (from)];                                                       \
        _Pragma("GCC unroll 6") for (int j = 0; j < (from); j++) {                       \
            lanes column[from], turned[to];                                              \
            _Pragma("GCC unroll 6") for (int i = 0; i < (from); i++) column[i] = READ(i, j); \
            step(column, turned);                                                        \
            _Pragma("GCC unroll 6") for (int k = 0; k < (to); k++) half[k * (from) + j] = turned[k]; \
        }                                                                                \
        _Pragma("GCC unroll 6") for (int k = 0; k < (to); k++) {                         \
            lanes row[to];                                                               \
            step(half + k * (from), row);                                                \
            _Pragma("GCC unroll 6") for (int l = 0; l < (to); l++) WRITE(k, l, row[l]);  \
        }                                                                                \
    } while (0)

#define SUMS (REGISTERS / 4 * 3) /* that are kept in registers while matrices are multiplied */

/* c[row][column] (+)= sum over k of a(row, k) b[k][column], for `rows` rows and `blocks` times LANES columns. */
INLINE void multiply_block(
    const real *a, int64_t by_row, int64_t by_k, const real *b, int64_t columns, int64_t depth, real *c, int add, int rows,
    int blocks
) {
    lanes sums[SUMS];
#pragma GCC unroll 24
    for (int i = 0; i < rows * blocks; i++) sums[i] = (lanes){0};
    for (int64_t k = 0; k < depth; k++) {
        lanes right[4];
#pragma GCC unroll 4
        for (int j = 0; j < blocks; j++) right[j] = load(b + k * columns + j * LANES);
#pragma GCC unroll 24
        for (int i = 0; i < rows; i++) {
            real left = a[i * by_row + k * by_k];
#pragma GCC unroll 4
            for (int j = 0; j < blocks; j++) sums[i * blocks + j] += left * right[j];
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < blocks; j++) {
            loose *to = (loose *)(c + i * columns + j * LANES);
            *to = sums[i * blocks + j] + (add ? load((real *)to) : (lanes){0});
        }
}

INLINE void multiply_columns(
    const real *a, int64_t by_row, int64_t by_k, const real *b, int64_t columns, int64_t rows, int64_t depth, real *c,
    int add, int blocks
) {
    int64_t row = 0;
#define ROWS(count)                                                                                                    \
    for (; row + (count) <= rows; row += (count))                                                                      \
        multiply_block(a + row * by_row, by_row, by_k, b, columns, depth, c + row * columns, add, count, blocks)
    ROWS(SUMS / blocks);
    if (SUMS / blocks > 4) ROWS(4);
    if (SUMS / blocks > 2) ROWS(2);
    ROWS(1);
#undef ROWS
}

/* c [rows][columns] (+)= a b, with the number `k` of row r of a at a[r by_row + k by_k]. */
static void multiply(
    const real *a, int64_t by_row, int64_t by_k, const real *b, int64_t columns, int64_t rows, int64_t depth, real *c, int add
) {
    for (int64_t at = 0; at < columns;) {
        int64_t left = (columns - at) / LANES;
#define COLUMNS(blocks)                                                                                     \
    if (SUMS >= 6 * (blocks) && left >= (blocks) && (left % (blocks) == 0 || left > (blocks) + 1)) {        \
        multiply_columns(a, by_row, by_k, b + at, columns, rows, depth, c + at, add, blocks);               \
        at += (blocks) * LANES;                                                                             \
        continue;                                                                                           \
    }
        COLUMNS(4)
        COLUMNS(3)
        COLUMNS(2)
        multiply_columns(a, by_row, by_k, b + at, columns, rows, depth, c + at, add, 1);
        at += LANES;
    }
}

/* Rows and columns of LANES times LANES values, exchanged: as many times as LANES is halved, the rows of the first half
   are interleaved with those of the second. */
INLINE void transpose(lanes *rows) {
#ifdef __clang__
    real values[LANES][LANES];
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) values[j][i] = rows[i][j];
    memcpy(rows, values, sizeof values);
#else
    mask first, second;
    for (int i = 0; i < LANES; i++) {
        first[i] = i / 2 + i % 2 * LANES;
        second[i] = first[i] + LANES / 2;
    }
    for (int halved = 1; halved < LANES; halved *= 2) {
        lanes next[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = __builtin_shuffle(rows[i], rows[i + LANES / 2], first);
            next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + LANES / 2], second);
        }
        memcpy(rows, next, sizeof next);
    }
#endif
}

/* Blocks of a matrix [rows][columns], both multiples of LANES, to [columns][rows]. */
static void transpose_matrix(const real *from, int64_t rows, int64_t columns, real *to) {
    for (int64_t row = 0; row < rows; row += LANES)
        for (int64_t column = 0; column < columns; column += LANES) {
            lanes block[LANES];
            for (int i = 0; i < LANES; i++) block[i] = load(from + (row + i) * columns + column);
            transpose(block);
            for (int i = 0; i < LANES; i++) *(loose *)(to + (column + i) * rows + row) = block[i];
        }
}

/* The filters [F][C][3][3] in points, [36][C][F]; `turned`, those of the gradient: upside down, [36][F][C]. `turning`
   is room for as many values as there are weights. */
static void filters_in_points(
    const real *weight, int64_t filters, int64_t channels, int turned, real *turning, real *points
) {
    int64_t from = turned ? filters : channels, to = turned ? channels : filters;
    if (turned)
        for (int64_t f = 0; f < filters; f++)
            for (int64_t c = 0; c < channels; c++)
                for (int k = 0; k < 9; k++) turning[(f * 9 + 8 - k) * channels + c] = weight[(f * channels + c) * 9 + k];
    else transpose_matrix(weight, filters, channels * 9, turning);
    for (int64_t c = 0; c < from; c++)
        for (int64_t f = 0; f < to; f += LANES) {
#define READ(i, j) load(turning + (c * 9 + i * 3 + j) * to + f)
#define WRITE(k, l, value) *(lanes *)(points + ((k * 6 + l) * from + c) * to + f) = value
            BOTH_DIRECTIONS(three_in_points, 3, 6, READ, WRITE);
#undef READ
#undef WRITE
        }
}

/* From one point to the next of so many values lie an odd number of cache lines, so that the points of a tile, which are
   written together, do not push each other out of the cache. */
INLINE int64_t apart(int64_t values) { return (values / GROUP | 1) * GROUP; }

/* Tiles number `first` to `first + count` of the maps in points, [36][count][channels]. */
static void maps_in_points(const stored *x, const Maps *m, int64_t first, int64_t count, const stored *zeros, real *points) {
    int64_t across = tiles_across(m), each = tiles_down(m) * across, channels = m->channels, step = apart(count * channels);
    for (int64_t t = 0; t < count; t++) {
        int64_t image = (first + t) / each, tile = (first + t) % each;
        int64_t top = tile / across * 4 - m->padding, left = tile % across * 4 - m->padding;
        const stored *pixel[POINTS];
        for (int k = 0; k < POINTS; k++) {
            int64_t y = top + k / 6, x_ = left + k % 6;
            int inside = y >= 0 && y < m->height && x_ >= 0 && x_ < m->width;
            pixel[k] = inside ? x + ((image * m->height + y) * m->width + x_) * channels : zeros;
        }
        for (int64_t c = 0; c < channels; c += LANES) {
#define READ(i, j) get(pixel[i * 6 + j] + c)
#define WRITE(k, l, value) *(lanes *)(points + (k * 6 + l) * step + t * channels + c) = value
            BOTH_DIRECTIONS(six_in_points, 6, 6, READ, WRITE);
#undef READ
#undef WRITE
        }
    }
}

/* The same of the gradients at the outputs, [36][count][filters]. */
static void outputs_in_points(
    const stored *g, const Maps *m, int64_t first, int64_t count, const stored *zeros, real *points
) {
    int64_t across = tiles_across(m), each = tiles_down(m) * across, filters = m->filters;
    int64_t height = out_height(m), width = out_width(m), step = apart(count * filters);
    for (int64_t t = 0; t < count; t++) {
        int64_t image = (first + t) / each, tile = (first + t) % each;
        const stored *pixel[16];
        for (int k = 0; k < 16; k++) {
            int64_t y = tile / across * 4 + k / 4, x = tile % across * 4 + k % 4;
            pixel[k] = y < height && x < width ? g + ((image * height + y) * width + x) * filters : zeros;
        }
        for (int64_t f = 0; f < filters; f += LANES) {
#define READ(i, j) get(pixel[i * 4 + j] + f)
#define WRITE(k, l, value) *(lanes *)(points + (k * 6 + l) * step + t * filters + f) = value
            BOTH_DIRECTIONS(four_in_points, 4, 6, READ, WRITE);
#undef READ
#undef WRITE
        }
    }
}

/* The outputs of tiles in points, [36][count][filters]. */
static void outputs_from_points(const real *points, const Maps *m, int64_t first, int64_t count, stored *y) {
    int64_t across = tiles_across(m), each = tiles_down(m) * across, filters = m->filters;
    int64_t height = out_height(m), width = out_width(m), step = apart(count * filters);
    for (int64_t t = 0; t < count; t++) {
        int64_t image = (first + t) / each, tile = (first + t) % each, top = tile / across * 4, left = tile % across * 4;
        int rows = top + 4 <= height ? 4 : (int)(height - top), columns = left + 4 <= width ? 4 : (int)(width - left);
        stored *corner = y + ((image * height + top) * width + left) * filters;
        for (int64_t f = 0; f < filters; f += LANES) {
#define READ(i, j) *(const lanes *)(points + (i * 6 + j) * step + t * filters + f)
#define WRITE(k, l, value) \
    if (k < rows && l < columns) put(corner + (k * width + l) * filters + f, value)
            BOTH_DIRECTIONS(four_of_points, 6, 4, READ, WRITE);
#undef READ
#undef WRITE
        }
    }
}

/* Tiles in points that are worked on together, so that they and the filters stay in the second-level cache. */
INLINE int64_t together(const Maps *m) {
    int64_t values = (448 * 1024 / (int64_t)sizeof(real) / POINTS) / (m->channels + m->filters) / 8 * 8;
    return values < 8 ? 8 : values;
}

/* y of (x, weight); `turned`: the weight is [channels][filters][3][3] and that of the convolution whose gradient this is. */
int32_t winograd_convolve(const stored *x, const real *weight, Maps maps, int32_t turned, stored *y) {
    const Maps *m = &maps;
    int64_t all = tiles(m), most = together(m), in = m->channels, out = m->filters, size = POINTS * in * out;
    if (most > all) most = all;
    int64_t of_in = POINTS * apart(most * in), own = of_in + POINTS * apart(most * out);
    int64_t most_room = m->threads * own > 9 * in * out ? m->threads * own : 9 * in * out;
    real *filters = reals(size + in + most_room), *zeros = filters + size, *buffers = zeros + in;
    if (!filters) return 1;
    memset(zeros, 0, in * sizeof(real));
    if (turned) filters_in_points(weight, in, out, 1, buffers, filters);
    else filters_in_points(weight, out, in, 0, buffers, filters);
#pragma omp parallel for num_threads(m->threads) if (m->threads > 1)
    for (int64_t first = 0; first < all; first += most) {
        int64_t count = all - first < most ? all - first : most;
        real *points = buffers + THREAD * own, *products = points + of_in;
        maps_in_points(x, m, first, count, (const stored *)zeros, points);
        for (int p = 0; p < POINTS; p++) {
            real *product = products + p * apart(count * out);
            multiply(points + p * apart(count * in), in, 1, filters + p * in * out, out, count, in, product, 0);
        }
        outputs_from_points(products, m, first, count, y);
    }
    free(filters);
    return 0;
}

/* The gradient at the weight, [filters][channels][3][3], of (g, x). */
int32_t winograd_weight(const stored *g, const stored *x, Maps maps, real *of_weight) {
    const Maps *m = &maps;
    int64_t all = tiles(m), most = together(m), in = m->channels, out = m->filters, size = POINTS * in * out;
    if (most > all) most = all;
    int64_t longest = in > out ? in : out;
    int64_t room = POINTS * (apart(most * in) + apart(most * out));
    real *sums = reals(size + longest + (room > 9 * in * out ? room : 9 * in * out));
    if (!sums) return 1;
    real *zeros = memset(sums + size, 0, longest * sizeof(real)), *pixels = zeros + longest;
    real *gradients = pixels + POINTS * apart(most * in);
    const stored *nothing = (const stored *)zeros;
    for (int64_t first = 0; first < all; first += most) {
        int64_t count = all - first < most ? all - first : most;
#pragma omp parallel for num_threads(m->threads) if (m->threads > 1)
        for (int half = 0; half < 2; half++) {
            if (half) maps_in_points(x, m, first, count, nothing, pixels);
            else outputs_in_points(g, m, first, count, nothing, gradients);
        }
#pragma omp parallel for num_threads(m->threads) if (m->threads > 1)
        for (int p = 0; p < POINTS; p++) {
            const real *left = pixels + p * apart(count * in), *right = gradients + p * apart(count * out);
            multiply(left, 1, in, right, out, in, count, sums + p * in * out, first > 0);
        }
    }
    real *turned = pixels;
    for (int64_t c = 0; c < in; c++)
        for (int64_t f = 0; f < out; f += LANES) {
#define READ(i, j) *(const lanes *)(sums + ((i * 6 + j) * in + c) * out + f)
#define WRITE(k, l, value) *(lanes *)(turned + (c * 9 + k * 3 + l) * out + f) = value
            BOTH_DIRECTIONS(three_of_points, 6, 3, READ, WRITE);
#undef READ
#undef WRITE
        }
    transpose_matrix(turned, in * 9, out, of_weight);
    free(sums);
    return 0;
}
