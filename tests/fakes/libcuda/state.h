// SPDX-License-Identifier: Apache-2.0
// What the simulated driver knows. Work that is queued is done as late as CUDA allows, when somebody waits for it, so
// that a program that forgets to wait, or gives memory back too early, sees it.
#pragma once

// Only what CUDA's driver exports, and what tests call, is to be seen: the library is compiled with hidden names, else
// they would take the place of other libraries' names.
#pragma GCC visibility push(default)
#include <cuda.h>
#pragma GCC visibility pop

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

struct Graph;

// A point in a stream's work, which an event stands for.
struct Point {
    CUstream_st* stream = nullptr;
    Graph* graph = nullptr;  // recorded instead of queued
    bool done = false;
    double at_ms = 0;
};

struct Work {
    std::function<CUresult()> act;
    std::shared_ptr<Point> record;
    std::shared_ptr<Point> wait;
};

struct Graph {
    CUstream_st* origin = nullptr;
    std::thread::id thread;
    std::vector<Work> work;
    std::set<CUstream_st*> forks;  // streams that joined by an event, and did not come back
    CUresult spoilt = CUDA_SUCCESS;
};

struct CUctx_st {
    int device;
    int references = 0;
    bool blocked = false;
};

struct CUstream_st {
    std::deque<Work> work = {};
    Graph* recording = nullptr;
};

struct CUevent_st {
    std::shared_ptr<Point> point;
};

struct CUmemPoolHandle_st {
    uint64_t threshold = 0;
    int waits_for_frees = 1;  // the driver's default
    uint64_t used = 0;
};

struct CUfunc_st {
    std::string name;
    int shared_allowed = 48 * 1024;
};

struct CUmod_st {
    std::string image;
    std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

struct CUgraph_st {
    Graph graph;
};

struct CUgraphExec_st {
    std::vector<Work> work;
};

struct Block {
    uint64_t size;
    bool live;
    CUmemoryPool pool;
    int device;
};

struct Injection {
    CUresult code;
    int skip;
};

struct State {
    std::recursive_mutex mutex;
    bool initialised = false;
    CUresult sticky = CUDA_SUCCESS;
    uint64_t capacity = 1ull << 30;
    CUctx_st primary[2] = {{0}, {1}};
    std::map<CUdeviceptr, Block> blocks;  // also of those that were given back: their addresses are not used again
    std::map<uintptr_t, uint64_t> registered;
    std::set<CUstream> streams;
    std::set<CUevent> events;
    std::set<CUmodule> modules;
    std::set<CUmemoryPool> pools;
    std::set<CUgraph> graphs;
    std::set<CUgraphExec> executables;
    std::map<std::string, Injection> injections;
    std::string launches;
    int stacks_left = 0;  // threads that ended with a context
};

extern State state;

// The thread's contexts.
struct Stack {
    std::vector<CUcontext> contexts;
    ~Stack();
};
extern thread_local Stack stack;

// What every call looks at first.
CUresult enter(const char* function, bool needs_context = true);

// Do what is queued on a stream; as far as a point, if one is given.
CUresult settle(CUstream stream, const Point* until = nullptr);
CUresult settle_all();

// Queue, or record.
CUresult queue(CUstream stream, Work work);

// The recording that this thread has begun and not ended; calls that it forbids spoil it.
Graph* recording_of_this_thread();
CUresult forbidden_while_recording();

// Whether live memory of the device, or of any, holds all of these bytes.
bool is_device_memory(CUdeviceptr pointer, uint64_t size, int device = -1);
bool is_registered(const void* pointer, uint64_t size);

CUresult run_kernel(const std::string& name, const std::string& parameters, unsigned threads);
