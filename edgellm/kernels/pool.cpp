// The pool of threads: a worker spins for a while, because more work mostly follows within microseconds, then sleeps.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE  // pthread_setaffinity_np
#endif
#include "pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// glibc 2.34 gave these functions new versions when they moved into libc. Under their first ones, which it still has, the
// library also loads with an older glibc (Debian 11), wherever gcc built it. zig builds for an old glibc anyway.
#if defined(__GLIBC__) && defined(__x86_64__) && !defined(__clang__)
#define FIRST(name) __asm__(".symver " #name "," #name "@GLIBC_2.2.5")
#endif
#ifdef FIRST
FIRST(pthread_attr_setstacksize);
FIRST(pthread_create);
FIRST(pthread_join);
FIRST(pthread_mutex_trylock);
FIRST(pthread_sigmask);
#undef FIRST
#endif

namespace edgellm {
namespace {

constexpr int64_t SPIN_NS = 50'000;  // longer than any pause within a step of a section
constexpr size_t STACK_BYTES = 1 << 20;

struct alignas(64) Line {
    uint32_t value;
};

// What workers wait for, and what they need next: one line of the cache, so that it travels once.
struct alignas(64) Start {
    uint32_t value;  // counts pieces of work; the workers' futex
    int parts;
    Work work;
    const void* data;
};

pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER;  // held by who runs work or changes the threads
pthread_t workers[MOST_THREADS];
int threads = 1;
int cores[MOST_THREADS];
bool pinned = false;
cpu_set_t allowed;             // where this process may run, as it was when the library was loaded
uint32_t generation = 0;       // of the pinning
bool maker_on_core = false;    // whether who makes workers is on a core of ours, on which they begin
bool stopping = false;
Start started;
Line finished;                 // workers that are through with the current one
uint32_t sleeping[MOST_THREADS];
uint32_t caller_waits = 0;
thread_local bool is_part = false;
thread_local uint32_t placed_as = 0;  // the generation that this thread's core is of
thread_local bool on_core = false;    // put there by `place`

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1'000'000'000) + t.tv_nsec;
}

void pause_a_little() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");  // `yield` does nothing on most cores
#endif
}

uint32_t get(const uint32_t& value) { return __atomic_load_n(&value, __ATOMIC_ACQUIRE); }

void futex_wait(uint32_t* at, uint32_t seen) {
    syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void futex_wake(uint32_t* at, int count) { syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0); }

// True as soon as `done()`; false after SPIN_NS.
template <class Done>
bool spin(const Done& done) {
    for (int i = 0; i < 64; i++) {
        if (done()) return true;
        pause_a_little();
    }
    const int64_t end = now_ns() + SPIN_NS;
    do
        for (int i = 0; i < 64; i++) {
            if (done()) return true;
            pause_a_little();
        }
    while (now_ns() < end);
    return false;
}

// Puts this thread on its core, or one that was put on a core back to wherever the process may run. A core that isn't
// there any more is no reason not to compute.
void place(int part) {
    if (!pinned && !on_core) return;  // where others put it is none of our business
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cores[part], &set);
    sched_setaffinity(0, sizeof set, pinned ? &set : &allowed);
    on_core = pinned;
}

// The sleepers say so before they look a last time, and whoever wakes writes before it looks who sleeps: nobody is missed.
void* worker(void* argument) {
    const int part = static_cast<int>(reinterpret_cast<intptr_t>(argument));
    is_part = true;
    on_core = maker_on_core;
    place(part);
    uint32_t seen = 0;  // pool_set sets the counter to 0 before it starts workers
    for (;;) {
        if (!spin([&] { return get(started.value) != seen; })) {
            __atomic_store_n(&sleeping[part], 1, __ATOMIC_SEQ_CST);
            while (__atomic_load_n(&started.value, __ATOMIC_SEQ_CST) == seen) futex_wait(&started.value, seen);
            __atomic_store_n(&sleeping[part], 0, __ATOMIC_RELAXED);
        }
        seen++;
        if (stopping) return nullptr;
        const int parts = started.parts;  // read before the caller may write the next one
        started.work(started.data, part, parts);
        if (__atomic_add_fetch(&finished.value, 1, __ATOMIC_SEQ_CST) == static_cast<uint32_t>(parts - 1) &&
            __atomic_load_n(&caller_waits, __ATOMIC_SEQ_CST))
            futex_wake(&finished.value, 1);
    }
}

void start_all() {
    __atomic_store_n(&finished.value, 0, __ATOMIC_RELAXED);
    __atomic_add_fetch(&started.value, 1, __ATOMIC_SEQ_CST);
    for (int i = 1; i < threads; i++)
        if (__atomic_load_n(&sleeping[i], __ATOMIC_SEQ_CST)) {
            futex_wake(&started.value, INT_MAX);
            break;
        }
}

void end_workers() {
    if (threads == 1) return;
    stopping = true;
    start_all();
    for (int i = 1; i < threads; i++) pthread_join(workers[i], nullptr);
    stopping = false;
    threads = 1;
}

int start_workers(int count) {
    started.value = 0;
    maker_on_core = on_core;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t all, before;  // signals are for Python's threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    for (int i = 1; i < count && !error; i++) {
        sleeping[i] = 0;
        error = pthread_create(&workers[i], &attributes, worker, reinterpret_cast<void*>(static_cast<intptr_t>(i)));
        if (!error) threads = i + 1;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    return -error;
}

// A forked child has none of the threads, whatever they were about.
void forked() {
    in_use = PTHREAD_MUTEX_INITIALIZER;
    threads = 1;
    stopping = false;
    caller_waits = 0;
    is_part = false;
}

__attribute__((constructor)) void loaded() {
    sched_getaffinity(0, sizeof allowed, &allowed);
    pthread_atfork(nullptr, nullptr, forked);
}

}  // namespace

int pool_threads() { return __atomic_load_n(&threads, __ATOMIC_RELAXED); }

int pool_set(int count, const int* on, size_t n) {
    if (count < 1 || count > MOST_THREADS || (n && (on == nullptr || n < static_cast<size_t>(count)))) return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (on[i] < 0 || on[i] >= CPU_SETSIZE) return -EINVAL;
    if (is_part) return -EBUSY;
    pthread_mutex_lock(&in_use);
    end_workers();
    for (size_t i = 0; i < n && i < static_cast<size_t>(MOST_THREADS); i++) cores[i] = on[i];
    pinned = n != 0;
    generation++;
    const int error = start_workers(count);
    if (error) end_workers();
    pthread_mutex_unlock(&in_use);
    return error;
}

void pool_run(Work work, const void* data) {
    if (is_part || pthread_mutex_trylock(&in_use) != 0) return work(data, 0, 1);
    if (placed_as != generation) {
        place(0);
        placed_as = generation;
    }
    is_part = true;
    if (threads == 1) {
        work(data, 0, 1);
    } else {
        started.parts = threads;
        started.work = work;
        started.data = data;
        const uint32_t others = static_cast<uint32_t>(threads - 1);
        start_all();
        work(data, 0, threads);
        if (!spin([&] { return get(finished.value) == others; })) {
            __atomic_store_n(&caller_waits, 1, __ATOMIC_SEQ_CST);
            uint32_t seen;
            while ((seen = __atomic_load_n(&finished.value, __ATOMIC_SEQ_CST)) != others)
                futex_wait(&finished.value, seen);
            __atomic_store_n(&caller_waits, 0, __ATOMIC_RELAXED);
        }
    }
    is_part = false;
    pthread_mutex_unlock(&in_use);
}

int edgellm_threads_set(int count, const int* on, uint64_t n) { return pool_set(count, on, n) ? BAD_THREADS : OK; }

int edgellm_threads() { return pool_threads(); }

}  // namespace edgellm
