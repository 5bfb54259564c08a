/* The model's kernels on a CPU. kernels.py calls them; ../reference.py defines what they compute.
 *
 * The threads that run a function take tasks from a shared counter until none is left. The result of a task
 * does not depend on the thread, so results are bit-identical for any number of threads. The code needs
 * neither Python.h nor a runtime library, because the caller provides the threads.
 *
 * Arrays are contiguous, of float or of bfloat16 (`half`), which is widened to float row by row.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* The instruction set is chosen at run time, so that a library built on a login node runs at full speed on
 * every node. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

INLINE int64_t next_task(int64_t *counter)
{
    return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

/* bfloat16 */

INLINE const float *read_row(const void *array, int64_t start, int64_t n, int half, float *buffer)
{
    if (!half)
        return (const float *)array + start;
    const uint16_t *from = (const uint16_t *)array + start;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&buffer[i], &bits, 4);
    }
    return buffer;
}

/* Return where to write a row of results: to the array itself, or to the buffer that `write_row` converts. */
INLINE float *row_for(void *array, int64_t start, int half, float *buffer)
{
    return half ? buffer : (float *)array + start;
}

INLINE void write_row(void *array, int64_t start, int64_t n, int half, const float *buffer)
{
    if (!half)
        return;
    uint16_t *to = (uint16_t *)array + start;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &buffer[i], 4);
        const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        to[i] = buffer[i] == buffer[i] ? rounded : 0x7fc0; /* rounding could turn a NaN into an infinity */
    }
}

/* Elementary functions, accurate to one or two units in the last place */

INLINE float exponential(float x)
{
    /* exp(x) = 2^n exp(r), |r| <= log(2) / 2, with log(2) in two parts; the polynomial is Cephes'. */
    const float clamped = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x; /* a NaN stays a NaN */
    const float n = floorf(clamped * 1.44269504088896341f + 0.5f);
    const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* Return 2 z of gelu(x) = x s(2 z), with the logistic function s and z = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE float gelu_argument(float x)
{
    return 1.5957691216057308f * (x + 0.044715f * x * x * x);
}

INLINE float logistic(float x)
{
    return 1.0f / (1.0f + exponential(-x));
}

/* Dropout: the mask is a function of seed, row and column. */

struct dropout {
    uint64_t seed;
    float scale;        /* factor of the elements that are kept, 1 / (1 - p) */
    uint32_t threshold; /* p in units of 2^-31; 0 for no dropout */
};

struct row_key {
    uint32_t first, second;
};

INLINE struct row_key key_of_row(struct dropout d, uint64_t row)
{
    /* splitmix64 (Steele et al. 2014) */
    uint64_t z = d.seed + (row + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (struct row_key){(uint32_t)z, (uint32_t)(z >> 32)};
}

/* Return the factor of the element in a column: `scale` if it is kept, else 0. */
INLINE float kept(struct dropout d, struct row_key key, uint32_t column)
{
    /* A 32-bit mixing function of three multiplications. The second half of the key enters before the last one,
     * so that rows whose columns happen to fall on overlapping ranges of the first half still differ. */
    uint32_t h = column + key.first;
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    h ^= (h >> 16) ^ key.second;
    h *= 0x9e3779b1u;
    h ^= h >> 15;
    return (int32_t)(h >> 1) < (int32_t)d.threshold ? 0.0f : d.scale;
}

/* y = dropout(x); the backward pass applies the same function to the gradient. */

enum { DROPOUT_ROW = 4096 };

struct dropout_pass {
    int64_t next, tasks; /* rows of DROPOUT_ROW elements */
    const void *x;
    void *y;
    int64_t elements, half;
    struct dropout dropout;
};

KERNEL void dropout_pass(struct dropout_pass *a)
{
    const struct dropout dropout = a->dropout;
    float in[DROPOUT_ROW], out[DROPOUT_ROW];
    for (int64_t row; (row = next_task(&a->next)) < a->tasks;) {
        const int64_t start = row * DROPOUT_ROW, n = MIN(DROPOUT_ROW, a->elements - start);
        const struct row_key key = key_of_row(dropout, row);
        const float *x = read_row(a->x, start, n, a->half, in);
        float *y = row_for(a->y, start, a->half, out);
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] * kept(dropout, key, i);
        write_row(a->y, start, n, a->half, out);
    }
}

/* Attention, apart from its matrix products
 *
 * A unit is one head of one sequence. Its products form a square matrix [E, E], E >= T + P: queries, followed
 * by the queries of relative positions, times keys, followed by the keys of relative positions:
 *
 *     [ q . k            q . position_k ]     row i: scores of query i, then its content-to-position terms
 *     [ position_q . k   (not used)     ]     row T + p: position-to-content terms of bucket p by key
 *
 * Bucket p covers a range of consecutive distances i - j, so that its terms are contiguous in both.
 */

struct attention {
    int64_t next, tasks; /* units of this call */
    int64_t first;       /* index of the first of these among all units */
    float *products;     /* [units, E, E]; forward: scores, overwritten with the probabilities after dropout;
                            backward: output, gradient of the products */
    float *gradient;     /* backward: [units, T, T], gradient of the probabilities after dropout; overwritten
                            with these probabilities */
    void *probabilities; /* [units of all calls, T, T], before dropout; forward: output, unless NULL */
    const int32_t *sequences; /* attention mask, [sequences of all calls, T] */
    const int32_t *runs;      /* [runs, 3]: least and greatest distance, and bucket, by increasing distance */
    int64_t num_runs, heads, length, side; /* side: E */
    int64_t half;
    struct dropout dropout;
};

struct range {
    int64_t begin, end; /* all visible keys are in this range */
    int has_hidden;     /* the range also contains keys that are not visible */
};

INLINE int is_visible(int32_t query, int32_t key)
{
    return key != 0 && (query == key || query == 0);
}

INLINE struct range visible_range(const int32_t *sequences, int64_t length, int64_t i)
{
    int64_t begin = length, end = 0, count = 0;
    for (int64_t j = 0; j < length; j++)
        if (is_visible(sequences[i], sequences[j])) {
            begin = MIN(begin, j);
            end = j + 1;
            count++;
        }
    return (struct range){MIN(begin, end), end, count != end - MIN(begin, end)};
}

/* Return the range of query i, given that of query i - 1. */
INLINE struct range next_range(const int32_t *sequences, int64_t length, int64_t i, struct range previous)
{
    return i > 0 && sequences[i] == sequences[i - 1] ? previous : visible_range(sequences, length, i);
}

#define FOR_RUNS(a, i, range, begin, end, bucket)                                                              \
    for (int64_t run_ = 0, begin, end, bucket; run_ < (a)->num_runs; run_++)                                   \
        if (begin = MAX((range).begin, (i) - (a)->runs[3 * run_ + 1]),                                         \
            end = MIN((range).end, (i) - (a)->runs[3 * run_] + 1), bucket = (a)->runs[3 * run_ + 2],           \
            begin < end)

KERNEL void attention_forward(struct attention *a)
{
    const int64_t length = a->length, side = a->side;
    const struct dropout dropout = a->dropout;
    float buffer[length];
    for (int64_t unit; (unit = next_task(&a->next)) < a->tasks;) {
        const int64_t number = a->first + unit;
        const int32_t *sequences = a->sequences + number / a->heads * length;
        float *products = a->products + unit * side * side;
        const float *position_to_content = products + length * side;
        struct range range = {0, 0, 0};
        for (int64_t i = 0; i < length; i++) {
            range = next_range(sequences, length, i, range);
            float *scores = products + i * side;
            const float *content_to_position = scores + length;
            FOR_RUNS(a, i, range, begin, end, bucket)
            {
                const float term = content_to_position[bucket];
                const float *terms = position_to_content + bucket * side;
                if (end - begin == 1) { /* true of most runs; setting up a vector loop would take longer */
                    scores[begin] += term + terms[begin];
                    continue;
                }
#pragma omp simd
                for (int64_t j = begin; j < end; j++)
                    scores[j] += term + terms[j];
            }
            if (range.has_hidden)
                for (int64_t j = range.begin; j < range.end; j++)
                    if (!is_visible(sequences[i], sequences[j]))
                        scores[j] = -INFINITY;
            float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
            for (int64_t j = range.begin; j < range.end; j++)
                largest = scores[j] > largest ? scores[j] : largest;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = range.begin; j < range.end; j++) {
                const float e = scores[j] == -INFINITY ? 0.0f : exponential(scores[j] - largest);
                scores[j] = e;
                sum += e;
            }
            const int64_t start = (number * length + i) * length;
            float *p = a->probabilities ? row_for(a->probabilities, start, a->half, buffer) : buffer;
            const struct row_key key = key_of_row(dropout, number * length + i);
            const float scale = 1.0f / sum;
            memset(p, 0, range.begin * sizeof *p);
            memset(p + range.end, 0, (length - range.end) * sizeof *p);
            memset(scores, 0, range.begin * sizeof *scores);
            memset(scores + range.end, 0, (length - range.end) * sizeof *scores);
            if (dropout.threshold) {
#pragma omp simd
                for (int64_t j = range.begin; j < range.end; j++) {
                    p[j] = scores[j] * scale;
                    scores[j] = p[j] * kept(dropout, key, j);
                }
            } else {
#pragma omp simd
                for (int64_t j = range.begin; j < range.end; j++)
                    p[j] = scores[j] *= scale;
            }
            if (a->probabilities)
                write_row(a->probabilities, start, length, a->half, p);
        }
    }
}

KERNEL void attention_backward(struct attention *a)
{
    const int64_t length = a->length, side = a->side;
    const struct dropout dropout = a->dropout;
    float buffer[length];
    for (int64_t unit; (unit = next_task(&a->next)) < a->tasks;) {
        const int64_t number = a->first + unit;
        const int32_t *sequences = a->sequences + number / a->heads * length;
        float *products = a->products + unit * side * side;
        float *position_to_content = products + length * side;
        struct range range = {0, 0, 0};
        memset(position_to_content, 0, (side - length) * side * sizeof *products);
        for (int64_t i = 0; i < length; i++) {
            range = next_range(sequences, length, i, range);
            float *scores = products + i * side, *content_to_position = scores + length;
            float *gradient = a->gradient + (unit * length + i) * length;
            const float *p = read_row(a->probabilities, (number * length + i) * length, length, a->half, buffer);
            const struct row_key key = key_of_row(dropout, number * length + i);
            float mean = 0;
            memset(scores, 0, range.begin * sizeof *scores);
            memset(scores + range.end, 0, (side - range.end) * sizeof *scores);
            if (dropout.threshold) {
#pragma omp simd reduction(+ : mean)
                for (int64_t j = range.begin; j < range.end; j++) {
                    const float keep = kept(dropout, key, j);
                    scores[j] = gradient[j] * keep;
                    mean += scores[j] * p[j];
                    gradient[j] = p[j] * keep;
                }
            } else {
#pragma omp simd reduction(+ : mean)
                for (int64_t j = range.begin; j < range.end; j++) {
                    scores[j] = gradient[j];
                    mean += scores[j] * p[j];
                    gradient[j] = p[j];
                }
            }
            memset(gradient, 0, range.begin * sizeof *gradient);
            memset(gradient + range.end, 0, (length - range.end) * sizeof *gradient);
#pragma omp simd
            for (int64_t j = range.begin; j < range.end; j++)
                scores[j] = p[j] * (scores[j] - mean);
            FOR_RUNS(a, i, range, begin, end, bucket)
            {
                float sum = 0, *terms = position_to_content + bucket * side;
                if (end - begin == 1) {
                    terms[begin] += content_to_position[bucket] = scores[begin];
                    continue;
                }
#pragma omp simd reduction(+ : sum)
                for (int64_t j = begin; j < end; j++) {
                    sum += scores[j];
                    terms[j] += scores[j];
                }
                content_to_position[bucket] = sum;
            }
        }
    }
}

/* LN(value * gelu(gate)) */

struct geglu_norm {
    int64_t next, tasks;  /* groups of GEGLU_ROWS rows */
    const void *x;        /* [rows, 2 M]: values, gates */
    void *y;              /* [rows, M]; backward: gradient of y */
    void *gradient;       /* backward: output, gradient of x */
    float *statistics;    /* [rows, 2]: mean and 1 / standard deviation before the norm */
    int64_t rows, width;  /* width: M */
    int64_t half;
    float eps;
};

enum { GEGLU_ROWS = 8 };

KERNEL void geglu_norm_forward(struct geglu_norm *a)
{
    const int64_t width = a->width;
    float in[2 * width], out[width];
    for (int64_t task; (task = next_task(&a->next)) < a->tasks;)
        for (int64_t row = task * GEGLU_ROWS; row < MIN((task + 1) * GEGLU_ROWS, a->rows); row++) {
            const float *value = read_row(a->x, row * 2 * width, 2 * width, a->half, in), *gate = value + width;
            float *y = row_for(a->y, row * width, a->half, out);
            float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < width; i++) {
                y[i] = value[i] * gate[i] * logistic(gelu_argument(gate[i]));
                sum += y[i];
            }
            const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; i++)
                squares += (y[i] - mean) * (y[i] - mean);
            const float scale = 1.0f / sqrtf(squares / width + a->eps);
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                y[i] = (y[i] - mean) * scale;
            a->statistics[2 * row] = mean;
            a->statistics[2 * row + 1] = scale;
            write_row(a->y, row * width, width, a->half, y);
        }
}

KERNEL void geglu_norm_backward(struct geglu_norm *a)
{
    const int64_t width = a->width;
    float in[2 * width], out[2 * width], of_y[width], sigmoids[width];
    for (int64_t task; (task = next_task(&a->next)) < a->tasks;)
        for (int64_t row = task * GEGLU_ROWS; row < MIN((task + 1) * GEGLU_ROWS, a->rows); row++) {
            const float *value = read_row(a->x, row * 2 * width, 2 * width, a->half, in), *gate = value + width;
            const float *dy = read_row(a->y, row * width, width, a->half, of_y);
            float *dx = row_for(a->gradient, row * 2 * width, a->half, out);
            const float mean = a->statistics[2 * row], scale = a->statistics[2 * row + 1];
            float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
            for (int64_t i = 0; i < width; i++) {
                sigmoids[i] = logistic(gelu_argument(gate[i]));
                const float normed = (value[i] * gate[i] * sigmoids[i] - mean) * scale;
                sum += dy[i];
                product += dy[i] * normed;
            }
            const float mean_gradient = sum / width, mean_product = product / width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) {
                const float s = sigmoids[i], gelu = gate[i] * s;
                const float normed = (value[i] * gelu - mean) * scale;
                const float du = scale * (dy[i] - mean_gradient - normed * mean_product);
                const float slope = 1.5957691216057308f * (1.0f + 3 * 0.044715f * gate[i] * gate[i]);
                dx[i] = du * gelu;
                dx[width + i] = du * value[i] * (s + gelu * (1.0f - s) * slope);
            }
            write_row(a->gradient, row * 2 * width, 2 * width, a->half, out);
        }
}

/* Weighted sums over tensors, and inner products with them */

enum { MIX_BLOCK = 4096 };

struct mix {
    int64_t next, tasks;  /* blocks of MIX_BLOCK elements */
    const void *const *tensors; /* [count] */
    const float *shares;  /* [count] */
    void *sum;            /* combine: output */
    const void *gradient; /* inner_products: input */
    double *products;     /* inner_products: output, [tasks, count] */
    int64_t count, elements, half;
};

KERNEL void combine(struct mix *a)
{
    float in[MIX_BLOCK], out[MIX_BLOCK];
    for (int64_t task; (task = next_task(&a->next)) < a->tasks;) {
        const int64_t start = task * MIX_BLOCK, n = MIN(MIX_BLOCK, a->elements - start);
        float *sum = row_for(a->sum, start, a->half, out);
        for (int64_t k = 0; k < a->count; k++) {
            const float *x = read_row(a->tensors[k], start, n, a->half, in), share = a->shares[k];
            if (k == 0) {
#pragma omp simd
                for (int64_t i = 0; i < n; i++)
                    sum[i] = share * x[i];
            } else {
#pragma omp simd
                for (int64_t i = 0; i < n; i++)
                    sum[i] += share * x[i];
            }
        }
        write_row(a->sum, start, n, a->half, out);
    }
}

KERNEL void inner_products(struct mix *a)
{
    float in[MIX_BLOCK], of_sum[MIX_BLOCK];
    for (int64_t task; (task = next_task(&a->next)) < a->tasks;) {
        const int64_t start = task * MIX_BLOCK, n = MIN(MIX_BLOCK, a->elements - start);
        const float *gradient = read_row(a->gradient, start, n, a->half, of_sum);
        for (int64_t k = 0; k < a->count; k++) {
            const float *x = read_row(a->tensors[k], start, n, a->half, in);
            float product = 0;
#pragma omp simd reduction(+ : product)
            for (int64_t i = 0; i < n; i++)
                product += gradient[i] * x[i];
            a->products[task * a->count + k] = product;
        }
    }
}

/* Cross entropy */

struct cross_entropy {
    int64_t next, tasks;    /* rows */
    const void *logits;     /* [rows, V] */
    const int64_t *targets; /* [rows] */
    float *log_sums;        /* [rows]: logarithm of the sum of exponentials; forward: output */
    float *losses;          /* forward: output, [rows] */
    int64_t *correct;       /* forward: output, [rows] */
    void *gradient;         /* backward: output, gradient of the logits */
    int64_t vocabulary, half;
    float smoothing;
    float scale;            /* backward: gradient of the summed loss */
};

KERNEL void cross_entropy_forward(struct cross_entropy *a)
{
    const int64_t vocabulary = a->vocabulary;
    float in[vocabulary];
    for (int64_t row; (row = next_task(&a->next)) < a->tasks;) {
        const float *logits = read_row(a->logits, row * vocabulary, vocabulary, a->half, in);
        const int64_t target = a->targets[row];
        float largest = -INFINITY, sum = 0, total = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < vocabulary; i++)
            largest = logits[i] > largest ? logits[i] : largest;
#pragma omp simd reduction(+ : sum, total)
        for (int64_t i = 0; i < vocabulary; i++) {
            sum += exponential(logits[i] - largest);
            total += logits[i];
        }
        int64_t first = 0; /* index of the largest logit that argmax returns */
        if (logits[target] == largest)
            while (logits[first] != largest)
                first++;
        const float log_sum = largest + logf(sum);
        a->log_sums[row] = log_sum;
        a->losses[row] = log_sum - (1.0f - a->smoothing) * logits[target] - a->smoothing * (total / vocabulary);
        a->correct[row] = logits[target] == largest && first == target;
    }
}

KERNEL void cross_entropy_backward(struct cross_entropy *a)
{
    const int64_t vocabulary = a->vocabulary;
    float in[vocabulary], out[vocabulary];
    for (int64_t row; (row = next_task(&a->next)) < a->tasks;) {
        const float *logits = read_row(a->logits, row * vocabulary, vocabulary, a->half, in);
        float *gradient = row_for(a->gradient, row * vocabulary, a->half, out);
        const float log_sum = a->log_sums[row], scale = a->scale, even = a->smoothing / vocabulary;
#pragma omp simd
        for (int64_t i = 0; i < vocabulary; i++)
            gradient[i] = scale * (exponential(logits[i] - log_sum) - even);
        gradient[a->targets[row]] -= scale * (1.0f - a->smoothing);
        write_row(a->gradient, row * vocabulary, vocabulary, a->half, out);
    }
}

/* Matrix products, tile by tile */

/* The Fortran interface: matrices are column-major, and all arguments are passed by address. */
typedef void sgemm_function(const char *, const char *, const int *, const int *, const int *, const float *,
                            const float *, const int *, const float *, const int *, const float *, float *,
                            const int *);

struct multiply {
    int64_t next, tasks;
    sgemm_function *sgemm; /* single-threaded */
    const float *a, *b, *bias;
    float *c; /* c = a b + bias, [m, n] = [m, k] [k, n] + [n], `tasks / tiles` times */
    int64_t m, n, k, rows, tiles; /* rows per task, and tasks per product */
    int64_t a_next, a_row, b_next, b_row, c_next, c_row; /* strides between matrices and between rows */
    int64_t a_transposed, b_transposed; /* 1 if stored transposed; the row stride is that of the transpose */
};

void multiply(struct multiply *s)
{
    for (int64_t task; (task = next_task(&s->next)) < s->tasks;) {
        const int64_t matrix = task / s->tiles, first = task % s->tiles * s->rows;
        const int m = (int)MIN(s->rows, s->m - first), n = (int)s->n, k = (int)s->k;
        const int a_row = (int)s->a_row, b_row = (int)s->b_row, c_row = (int)s->c_row;
        const float one = 1.0f, zero = 0.0f;
        const float *a = s->a + matrix * s->a_next + (s->a_transposed ? first : first * s->a_row);
        float *c = s->c + matrix * s->c_next + first * s->c_row;
        /* Row-major matrices are transposes to Fortran, so it computes c^T = b^T a^T. */
        s->sgemm(s->b_transposed ? "T" : "N", s->a_transposed ? "T" : "N", &n, &m, &k, &one,
                 s->b + matrix * s->b_next, &b_row, a, &a_row, &zero, c, &c_row);
        if (!s->bias)
            continue;
        for (int64_t i = 0; i < m; i++)
#pragma omp simd
            for (int64_t j = 0; j < n; j++)
                c[i * s->c_row + j] += s->bias[j];
    }
}
