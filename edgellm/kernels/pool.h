// The threads that share one piece of work at a time: the caller and some workers, each on a core of its own if told so.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "exported.h"

namespace edgellm {

// How many threads pool_run uses, the caller included. 1 until pool_set.
int pool_threads();

// Uses `count` threads from now on: 1 to MOST_THREADS. With `cores` (n >= count of them) worker i stays on cores[i], and
// whoever calls pool_run goes to cores[0]; without, the system places them. 0, or a negative errno if the system won't.
// Waits for work that runs; not to be called from within it.
int pool_set(int count, const int* cores, size_t n);

// Calls work(data, part, parts) once for every part in [0, parts), parts <= pool_threads(), and returns when all are done.
// Work must not depend on how many parts there are. If another thread uses the pool just now, or the caller is itself
// one of its parts, the caller does all of it alone as one part. Nothing is allocated.
// With one thread, too, it is this call that puts the caller on its core.
using Work = void (*)(const void* data, int part, int parts);
void pool_run(Work work, const void* data);

constexpr size_t RUNS = 4;  // a thread, if they were of equal length

// Calls f(start, end) for runs of items that together are [0, items), from several threads at once. Runs begin at
// multiples of `grain`; faster threads take more of them. Each run is a share of what is left, so the first are long and
// the last short: threads that are equally fast end within one grain of each other. With more `runs_a_thread` all are
// shorter.
template <class F>
void share(size_t items, size_t grain, const F& f, size_t runs_a_thread = RUNS) {
    const size_t threads = static_cast<size_t>(pool_threads());
    if (items == 0) return;
    if (items <= grain) return f(size_t{0}, items);
    struct Job {
        const F& f;
        size_t items, grain, shares;
        mutable size_t next;
    } job = {f, items, grain, threads == 1 ? 1 : runs_a_thread * threads / 2, 0};
    pool_run(
        [](const void* data, int, int) {
            const Job& job = *static_cast<const Job*>(data);
            size_t start = __atomic_load_n(&job.next, __ATOMIC_RELAXED);
            while (start < job.items) {
                const size_t unit = job.shares * job.grain, run = (job.items - start + unit - 1) / unit * job.grain;
                if (!__atomic_compare_exchange_n(&job.next, &start, start + run, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
                    continue;  // another thread took it; start is where the next one begins
                job.f(start, start + run < job.items ? start + run : job.items);
                start = __atomic_load_n(&job.next, __ATOMIC_RELAXED);
            }
        },
        &job);
}

}  // namespace edgellm
