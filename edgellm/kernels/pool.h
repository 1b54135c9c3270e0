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

constexpr size_t RUNS = 4;  // a thread, if all are equally fast

// Calls f(start, end) for runs of items that together are [0, items), from several threads at once. Runs begin at
// multiples of `grain`; faster threads take more of them. There are more, and shorter ones, with more `runs_a_thread`.
template <class F>
void share(size_t items, size_t grain, const F& f, size_t runs_a_thread = RUNS) {
    const size_t threads = static_cast<size_t>(pool_threads());
    if (items == 0) return;
    if (items <= grain) return f(size_t{0}, items);
    const size_t runs = threads == 1 ? 1 : runs_a_thread * threads;
    const size_t run = ((items + runs - 1) / runs + grain - 1) / grain * grain;
    struct Job {
        const F& f;
        size_t items, run;
        mutable size_t next;
    } job = {f, items, run, 0};
    pool_run(
        [](const void* data, int, int) {
            const Job& job = *static_cast<const Job*>(data);
            for (;;) {
                const size_t start = __atomic_fetch_add(&job.next, job.run, __ATOMIC_RELAXED);
                if (start >= job.items) return;
                job.f(start, start + job.run < job.items ? start + job.run : job.items);
            }
        },
        &job);
}

}  // namespace edgellm
