/* Rounding, selection and grouping on the CPU: what is said in PyTorch beside each use, to the same support and bits.
 *
 * Plain loops that compilers vectorise; on x86-64 Linux one copy of each function is made for every vector width and
 * the loader takes the one that the processor has. No Python here: the library is opened with ctypes. */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 12
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif
#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif
#if defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

#define GROUPS 1024 /* most group maxima of a row: a few KB, so they stay in the first cache */
#define BLOCK 64    /* entries compared together */
#define LANES 32    /* sums kept side by side: two of the widest vectors */
#define PART 16384  /* entries whose count surely fits a key */

/* Raised with VERSION in compiled.py whenever a function changes: a library built from an older file is left alone. */
PUBLIC int64_t selection_version(void) { return 2; }

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of_int16_t(int16_t key) { return as_float((uint32_t)(uint16_t)key << 16); }
INLINE float float_of_int32_t(int32_t key) { return as_float((uint32_t)key); }

/* The smallest key whose value is at least `bound` > 0. */
INLINE int32_t key_from_int16_t(float bound) { return (int32_t)((as_bits(bound) + 0xFFFFu) >> 16); }
INLINE int32_t key_from_int32_t(float bound) { return (int32_t)as_bits(bound); }

/* The k-th largest of `count` keys, or 0 if fewer than k are positive; built bit by bit from the highest. */
#define DEFINE_KTH(KEY, HIGH)                                                                                          \
    INLINE int32_t kth_##KEY(const KEY *keys, int64_t count, int64_t k) {                                              \
        int32_t found = 0;                                                                                             \
        for (int bit = HIGH; bit >= 0; bit--) {                                                                        \
            const KEY trial = (KEY)(found | (int32_t)1 << bit);                                                        \
            int64_t larger = 0;                                                                                        \
            for (int64_t start = 0; start < count; start += PART) {                                                    \
                const int64_t stop = start + PART < count ? start + PART : count;                                      \
                KEY part = 0; /* as wide as the keys: nothing to widen in the loop */                                  \
                for (int64_t i = start; i < stop; i++) part += keys[i] >= trial;                                       \
                larger += part;                                                                                        \
            }                                                                                                          \
            if (larger >= k) found = trial;                                                                            \
        }                                                                                                              \
        return found;                                                                                                  \
    }
DEFINE_KTH(int16_t, 14)
DEFINE_KTH(int32_t, 30)

/* The latents of one row whose score is at least share * kth - slack and above -slack, ascending; returns how many.
 *
 * A float that is positive orders as its bits do. The k-th largest of the maxima of groups of entries is no more than
 * the k-th largest entry, so what is far below it need not be looked at again. */
#define DEFINE_ROW(KEY)                                                                                                \
    INLINE int64_t row_##KEY(const KEY *scores, int64_t n, int64_t k, float slack, float share,          \
                               int64_t *latents, KEY *kept) {                                                          \
        KEY maxima[GROUPS];                                                                                            \
        int64_t groups = n, count = 0, out = 0, i;                                                                     \
        const KEY *top = scores;                                                                                       \
        while (groups > GROUPS || (groups % 2 == 0 && groups >= 16 * k)) groups = groups / 2 + groups % 2;             \
        if (groups < n && groups >= k) {                                                                               \
            memcpy(maxima, scores, (size_t)groups * sizeof(KEY));                                                      \
            for (int64_t start = groups; start < n; start += groups) {                                                 \
                const int64_t width = n - start < groups ? n - start : groups;                                         \
                for (i = 0; i < width; i++) maxima[i] = maxima[i] > scores[start + i] ? maxima[i] : scores[start + i]; \
            }                                                                                                          \
            top = maxima;                                                                                              \
        } else {                                                                                                       \
            groups = n;                                                                                                \
        }                                                                                                              \
        const float bound = share * float_of_##KEY((KEY)kth_##KEY(top, groups, k)) - slack;                            \
        if (!(bound > 0)) {                                                                                            \
            for (i = 0; i < n; i++) {                                                                                  \
                const float score = float_of_##KEY(scores[i]);                                                         \
                latents[count] = i, kept[count] = scores[i];                                                           \
                count += score >= bound && score > -slack;                                                             \
            }                                                                                                          \
        } else {                                                                                                       \
            const KEY least = (KEY)key_from_##KEY(bound);                                                              \
            for (int64_t start = 0; start < n; start += BLOCK) {                                                       \
                const int64_t stop = start + BLOCK < n ? start + BLOCK : n;                                            \
                uint8_t large[BLOCK] = {0};                                                                            \
                for (i = start; i < stop; i++) large[i - start] = scores[i] >= least;                                  \
                for (int64_t word = 0; word < BLOCK; word += 8) {                                                      \
                    uint64_t any;                                                                                      \
                    memcpy(&any, large + word, 8);                                                                     \
                    if (!any) continue;                                                                                \
                    for (i = word; i < word + 8; i++) {                                                                \
                        latents[count] = start + i;                                                                    \
                        count += large[i];                                                                             \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
            for (i = 0; i < count; i++) kept[i] = scores[latents[i]];                                                  \
        }                                                                                                              \
        const float limit = share * float_of_##KEY((KEY)kth_##KEY(kept, count, k)) - slack;                            \
        for (i = 0; i < count; i++) {                                                                                  \
            latents[out] = latents[i];                                                                                 \
            out += float_of_##KEY(kept[i]) >= limit;                                                                   \
        }                                                                                                              \
        return out;                                                                                                    \
    }
DEFINE_ROW(int16_t)
DEFINE_ROW(int32_t)

/* All rows [b, n]; counts [b]; latents and kept have room for b * n + 1 and n + 1 entries. Returns the sum of counts. */
#define DEFINE_CANDIDATES(NAME, KEY)                                                                                   \
    PUBLIC WIDEST int64_t NAME(const KEY *scores, int64_t b, int64_t n, int64_t k, const float *slack, float share,     \
                               int64_t *counts, int64_t *latents, KEY *kept) {                                         \
        int64_t total = 0;                                                                                             \
        for (int64_t row = 0; row < b; row++) {                                                                        \
            counts[row] = row_##KEY(scores + row * n, n, k, slack[row], share, latents + total, kept);                 \
            total += counts[row];                                                                                      \
        }                                                                                                              \
        return total;                                                                                                  \
    }
DEFINE_CANDIDATES(candidates_bfloat16, int16_t)
DEFINE_CANDIDATES(candidates_float32, int32_t)

/* Of the pairs of each row (indptr [b + 1]) the k largest positive ones, of equal ones the first; order is kept.
 *
 * counts [b]: how many are kept of each row; places: which, among all pairs. Returns the sum of counts. */
PUBLIC WIDEST int64_t largest_float32(const int64_t *indptr, const int32_t *values, int64_t b, int64_t k,
                                      int64_t *counts, int64_t *places) {
    int64_t total = 0;
    for (int64_t row = 0; row < b; row++) {
        const int64_t start = indptr[row], stop = indptr[row + 1], before = total;
        const int32_t least = kth_int32_t(values + start, stop - start, k);
        int64_t equal = k, i;
        for (i = start; i < stop; i++) equal -= values[i] > least;
        for (i = start; i < stop; i++) {
            const int take = values[i] > 0 && (values[i] > least || (values[i] == least && equal-- > 0));
            places[total] = i;
            total += take;
        }
        counts[row] = total - before;
    }
    return total;
}

/* Up to LANES floats to bfloat16, ties to even; their squares and those of what is lost are added to sums by place. */
INLINE void round_few(const float *from, uint16_t *to, int64_t count, float *squares, float *lost_squares) {
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = as_bits(from[i]);
        const uint32_t kept = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
        const float lost = as_float(kept << 16) - from[i];
        to[i] = (uint16_t)kept;
        squares[i] += from[i] * from[i];
        lost_squares[i] += lost * lost;
    }
}

/* Rows [r, d] rounded to bfloat16, their squared norms [r] and those of what is lost. Strides are in elements. */
PUBLIC WIDEST void round_rows(const float *restrict rows, int64_t stride, int64_t r, int64_t d,
                              uint16_t *restrict rounded, int64_t rounded_stride, float *norms, float *losses) {
    for (int64_t row = 0; row < r; row++) {
        const float *from = rows + row * stride;
        uint16_t *to = rounded + row * rounded_stride;
        float squares[LANES] = {0}, lost_squares[LANES] = {0}, square = 0, lost_square = 0;
        int64_t start = 0;
        for (; start + LANES <= d; start += LANES) round_few(from + start, to + start, LANES, squares, lost_squares);
        round_few(from + start, to + start, d - start, squares, lost_squares);
        for (int64_t i = 0; i < LANES; i++) square += squares[i], lost_square += lost_squares[i];
        norms[row] = square;
        losses[row] = lost_square;
    }
}

INLINE int64_t place_of(int64_t latent, int64_t first, int64_t count) {
    const uint64_t own = (uint64_t)(latent - first);
    return own < (uint64_t)count ? (int64_t)own : count;
}

/* The pairs of `count` latents from `first` on, grouped by latent, in their order within each; behind them all others.
 *
 * Without a branch, which could not be foretold. offsets [count + 2]: where the pairs of each begin and the last one's
 * end; sums [count + 1]: of g, added in that order. Outputs have room for all pairs. Returns how many are grouped. */
PUBLIC int64_t group_pairs(const int64_t *latents, const int64_t *tokens, const float *z, const float *g, int64_t pairs,
                           int64_t first, int64_t count, int64_t *offsets, int64_t *tokens_out, float *z_out,
                           float *g_out, float *sums) {
    memset(offsets, 0, (size_t)(count + 2) * sizeof *offsets);
    memset(sums, 0, (size_t)(count + 1) * sizeof *sums);
    for (int64_t pair = 0; pair < pairs; pair++) offsets[place_of(latents[pair], first, count) + 1]++;
    for (int64_t own = 0; own <= count; own++) offsets[own + 1] += offsets[own];
    for (int64_t pair = 0; pair < pairs; pair++) {
        const int64_t own = place_of(latents[pair], first, count);
        const int64_t place = offsets[own]++; /* so in the end each offset is that of the next latent */
        tokens_out[place] = tokens[pair];
        z_out[place] = z[pair];
        g_out[place] = g[pair];
        sums[own] += g[pair];
    }
    memmove(offsets + 1, offsets, (size_t)count * sizeof *offsets);
    offsets[0] = 0;
    return offsets[count];
}
