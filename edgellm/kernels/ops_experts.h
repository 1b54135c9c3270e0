// Choosing experts, and adding up what they give, in Lanes, for ops_*.cpp.

namespace {

// The softmax of `count` values, which are filled up with -infinity to a multiple of LANES: sums in ascending order.
void soften_all(float* values, size_t count) {
    Lanes top = load(values), total = splat(0);
    for (size_t i = LANES; i < count; i += LANES) top = most(top, load(values + i));
    const Lanes largest_of_all = splat(largest(top));
    for (size_t i = 0; i < count; i += LANES) {
        const Lanes e = exp(sub(load(values + i), largest_of_all));
        store(values + i, e);
        total = add(total, e);
    }
    const Lanes divisor = splat(sum(total));
    for (size_t i = 0; i < count; i += LANES) store(values + i, div(load(values + i), divisor));
}

void fill_up(float* values, size_t count) {
    for (size_t i = count; i % LANES; i++) values[i] = -__builtin_inff();
}

// The largest of values[begin, end) that isn't taken, and of equals the first; one that isn't taken, whatever they are.
inline size_t best_of(const float* values, const bool* taken, size_t begin, size_t end) {
    size_t best = end;
    for (size_t i = begin; i < end; i++)
        if (!taken[i] && (best == end || values[i] > values[best])) best = i;
    return best;
}

// Marks what isn't in one of the best groups as taken.
void rule_out_groups(const RouteJob& job, const float* values, bool* taken) {
    const size_t size = job.count / job.groups;
    float good[MOST_EXPERTS];
    bool chosen[MOST_EXPERTS] = {};
    for (size_t g = 0; g < job.groups; g++) {
        const size_t begin = g * size, first = best_of(values, taken, begin, begin + size);
        good[g] = values[first];
        if (job.group_by_best) continue;
        taken[first] = true;
        good[g] += values[best_of(values, taken, begin, begin + size)];
        taken[first] = false;
    }
    for (size_t i = 0; i < job.top_groups; i++) chosen[best_of(good, chosen, 0, job.groups)] = true;
    for (size_t i = 0; i < job.count; i++) taken[i] = !chosen[i / size];
}

void route(const RouteJob& job, uint32_t* chosen, float* weights) {
    float scores[MOST_EXPERTS + LANES], corrected[MOST_EXPERTS], of_chosen[MOST_CHOSEN + LANES];
    bool taken[MOST_EXPERTS] = {}, ours[MOST_EXPERTS] = {};
    for (size_t i = 0; i < job.count; i++) scores[i] = job.bias ? job.products[i] + job.bias[i] : job.products[i];
    fill_up(scores, job.count);
    if (job.scoring == SOFTMAX) soften_all(scores, job.count);
    if (job.scoring == SIGMOID)
        for (size_t i = 0; i < job.count; i += LANES) store(scores + i, sigmoid(load(scores + i)));
    const float* values = scores;
    if (job.correction) {
        for (size_t i = 0; i < job.count; i++) corrected[i] = scores[i] + job.correction[i];
        values = corrected;
    }
    if (job.groups > 1) rule_out_groups(job, values, taken);
    for (size_t k = 0; k < job.top_k; k++) {
        const size_t best = best_of(values, taken, 0, job.count);
        taken[best] = ours[best] = true;
    }
    size_t k = 0;
    for (size_t i = 0; i < job.count; i++)
        if (ours[i]) chosen[k] = static_cast<uint32_t>(i), of_chosen[k++] = scores[i];
    if (job.scoring == SOFTMAX_OF_CHOSEN) {
        fill_up(of_chosen, k);
        soften_all(of_chosen, k);
    }
    float divisor = 1.0f;
    if (job.normalise) {
        divisor = 1e-20f;
        for (size_t i = 0; i < k; i++) divisor += of_chosen[i];
    }
    for (size_t i = 0; i < k; i++) weights[i] = of_chosen[i] / divisor * job.scale;
}

void accumulate(float* x, const float* added, const float* bias, float weight, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        Lanes v = load(added + i);
        if (bias) v = add(v, load(bias + i));
        store(x + i, fma(splat(weight), v, load(x + i)));
    }
}

}  // namespace
