/* LAMB's kernels on a CPU. lamb_cpu.py calls them; ReferenceLamb in lamb_reference.py defines them.
 *
 * The compiler vectorizes the loops for several instruction sets. The best one for the processor is chosen at
 * run time, so that a library built on a login node runs at full speed on every node. The code needs neither
 * Python.h nor a runtime library, because the caller provides the threads.
 */
#include <math.h>
#include <stdint.h>

/* One flat parameter of the optimizer. lamb_cpu.py declares the same layout of this structure and the next. */
struct flat {
    float *parameter;
    const float *gradient;
    float *moment1, *moment2;
    float rate, decay, eps;
    float weight1, beta2, weight2; /* weight = 1 - beta */
    float scale1, scale2;          /* reciprocals of the bias corrections */
};

/* A range of elements of a flat parameter that belong to one tensor. */
struct chunk {
    int64_t flat, tensor, start, end;
};

enum { UPDATE_MOMENTS, STEP, UPDATE_MOMENTS_AND_STEP };

/* Squares are summed in single precision within a block, in double precision over the blocks. */
enum { BLOCK = 1024 };

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GLIBC__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif

INLINE void update_range(int kind, const struct flat *f, int64_t start, int64_t end, float ratio, double *squares)
{
    const int moves_moments = kind != STEP, moves_weights = kind != UPDATE_MOMENTS;
    const float decay = f->decay, eps = f->eps, scale1 = f->scale1, scale2 = f->scale2;
    const float weight1 = f->weight1, beta2 = f->beta2, weight2 = f->weight2, stride = f->rate * ratio;
    float *restrict p = f->parameter, *restrict m = f->moment1, *restrict v = f->moment2;
    const float *restrict g = f->gradient;
    double weights = 0, updates = 0;

    for (int64_t begin = start; begin < end; begin += BLOCK) {
        const int64_t stop = end - begin < BLOCK ? end : begin + BLOCK;
        float block_weights = 0, block_updates = 0;
#pragma omp simd reduction(+ : block_weights, block_updates)
        for (int64_t i = begin; i < stop; i++) {
            const float weight = p[i];
            float first = m[i], second = v[i];
            if (moves_moments) {
                first += weight1 * (g[i] - first);
                second = beta2 * second + weight2 * g[i] * g[i];
                m[i] = first;
                v[i] = second;
            }
            const float update = scale1 * first / (sqrtf(scale2 * second) + eps) + decay * weight;
            if (moves_moments) {
                block_weights += weight * weight;
                block_updates += update * update;
            }
            if (moves_weights)
                p[i] = weight - stride * update;
        }
        weights += block_weights;
        updates += block_updates;
    }
    squares[0] = weights;
    squares[1] = updates;
}

/* A pass over memory. Its threads take chunks from a shared counter until none is left. */
struct pass {
    int64_t next, chunks; /* next: first chunk that no thread has taken */
    int64_t kind;
    const struct flat *flats;
    const struct chunk *chunk;
    const float *ratios; /* one per tensor, or NULL for 1 */
    double *squares;     /* output, [chunks, 2]: sums of the squares of weights and updates (0 for STEP) */
};

INLINE void update_chunks(int kind, struct pass *pass)
{
    for (int64_t i; (i = __atomic_fetch_add(&pass->next, 1, __ATOMIC_RELAXED)) < pass->chunks;) {
        const struct chunk *c = &pass->chunk[i];
        const float ratio = pass->ratios ? pass->ratios[c->tensor] : 1.0f;
        update_range(kind, &pass->flats[c->flat], c->start, c->end, ratio, &pass->squares[2 * i]);
    }
}

KERNEL void lamb_pass(struct pass *pass)
{
    /* The kind is passed as a constant, so that the inlined `update_range` has no branches in its loop. */
    if (pass->kind == UPDATE_MOMENTS)
        update_chunks(UPDATE_MOMENTS, pass);
    else if (pass->kind == STEP)
        update_chunks(STEP, pass);
    else
        update_chunks(UPDATE_MOMENTS_AND_STEP, pass);
}
