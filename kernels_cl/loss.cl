// softmax_cross_entropy of logits (N, C, S) and labels (N, S), and its gradient in the logits.
//
//     l = -log softmax(logits)                   loss = (1 - s) w[label] l[label] + s / C  sum over c of w[c] l[c]
//     dlogits[c] = g ((1 - s) w[label] (p[c] - [c = label]) + s / C (W p[c] - w[c])),  W = sum of w
//
// Method    a row (n, s) per work-group of GROUP items (S = 1), or per item (GROUP 1). The forward kernel leaves a loss
//           and a weight per row; their sums are reduce.cl's.
// Numerics  the maximum is subtracted first; l is log(sum) - (x - max), so no probability is ever rounded to 0 or 1.
//           Labels are in range or `ignored`: the caller has checked them.
//
// Defined by the launch:  LABELS  i32 or i64;  WEIGHT  where there are class weights;  SMOOTHED  where s > 0
#include "types.clh"
#include "rows.clh"

#define LABEL_T CAT(storage_, LABELS)

#ifdef WEIGHT
#define WEIGHT_IN IN(T, weight),
#define WEIGHT_START START(weight);
#define WEIGHT_OF(c) LOAD(weight, c)
#else
#define WEIGHT_IN
#define WEIGHT_START
#define WEIGHT_OF(c) ((ACC)1)
#endif

#define LOGIT(c) LOAD(logits, base + (c) * (INDEX)inner)

#define ENTER                                                                                   \
    START(logits);                                                                              \
    START(labels);                                                                              \
    WEIGHT_START                                                                                \
    const INDEX row = ROW;                                                                      \
    if (row >= (INDEX)rows) return;                                                             \
    GROUP_MEMORY                                                                                \
    const INDEX base = row / (INDEX)inner * (INDEX)classes * (INDEX)inner + row % (INDEX)inner; \
    const long label = labels[row];                                                             \
    ACC top = -INFINITY;                                                                        \
    ALONG(c, 0, (INDEX)classes) top = fmax(top, LOGIT(c));                                      \
    top = GROUP_MAX(top);                                                                       \
    Sum own_sum = {0, 0};                                                                       \
    ALONG(c, 0, (INDEX)classes) own_sum = plus(own_sum, exp_below(LOGIT(c), top));              \
    const ACC sum = GROUP_SUM(own_sum.sum);

__kernel void cross_entropy(IN(T, logits), IN(LABEL_T, labels), WEIGHT_IN OUT(T, losses), OUT(T, weights),
                            const long rows, const long classes, const long inner, const long ignored,
                            const ACC smoothing) {
    START(losses);
    START(weights);
    ENTER
    const ACC log_sum = log(sum);
#ifdef SMOOTHED
    ACC smooth = 0;
    ALONG(c, 0, (INDEX)classes) {
        const ACC share = WEIGHT_OF(c);
        if (share > 0) smooth += share * (log_sum - (LOGIT(c) - top));
    }
    smooth = GROUP_SUM(smooth);
#endif
    if (ITEM != 0) return;
    ACC loss = 0, own = 0;
    if (label != ignored) {
        own = WEIGHT_OF(label);
        const ACC share = (1 - smoothing) * own;
        if (share > 0) loss = share * (log_sum - (LOGIT((INDEX)label) - top));
#ifdef SMOOTHED
        loss += smoothing / classes * smooth;
#endif
    }
    STORE(losses, row, loss);
    STORE(weights, row, own);
}

__kernel void label_weights(IN(LABEL_T, labels), WEIGHT_IN OUT(T, weights), const long rows, const long classes,
                            const long inner, const long ignored, const ACC smoothing) {
    START(labels);
    WEIGHT_START
    START(weights);
    const INDEX row = ROW;
    if (row >= (INDEX)rows) return;
    if (ITEM != 0) return;
    const long label = labels[row];
    STORE(weights, row, label == ignored ? (ACC)0 : WEIGHT_OF(label));
}

// dy is one number (DY_ROWS undefined) or one per row; divisor, for the mean, is the sum of the rows' weights.
__kernel void cross_entropy_dx(IN(T, dy), IN(T, logits), IN(LABEL_T, labels), WEIGHT_IN
#ifdef DIVIDED
                               IN(T, divisor),
#endif
                               OUT(T, dx), const long rows, const long classes, const long inner, const long ignored,
                               const ACC smoothing) {
    START(dy);
    START(dx);
    ENTER
#ifdef DY_ROWS
    ACC scale = LOAD(dy, row);
#else
    ACC scale = LOAD(dy, 0);
#endif
#ifdef DIVIDED
    START(divisor);
    scale /= LOAD(divisor, 0);
#endif
#ifdef SMOOTHED
    ACC all = 0;
    ALONG(c, 0, (INDEX)classes) all += WEIGHT_OF(c);
    all = GROUP_SUM(all);
    const ACC share = smoothing / classes;
#endif
    const bool counted = label != ignored;
    const ACC own = counted ? (1 - smoothing) * WEIGHT_OF(label) : 0;
    ALONG(c, 0, (INDEX)classes) {
        ACC slope = 0;
        if (counted) {
            const ACC p = exp_below(LOGIT(c), top) / sum;
            slope = own * (p - (c == (INDEX)label ? 1 : 0));
#ifdef SMOOTHED
            slope += share * (all * p - WEIGHT_OF(c));
#endif
            slope *= scale;
        }
        STORE(dx, base + c * (INDEX)inner, slope);
    }
}
