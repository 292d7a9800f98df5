// SPDX-License-Identifier: Apache-2.0
#include "state.h"

#include <chrono>
#include <cstring>

State state;
thread_local Stack stack;

static const std::set<int> sticky_codes = {214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999};

Stack::~Stack() {
    if (!contexts.empty()) {
        std::lock_guard guard(state.mutex);
        ++state.stacks_left;
    }
}

CUresult enter(const char* function, bool needs_context) {
    if (!state.initialised) return CUDA_ERROR_NOT_INITIALIZED;
    std::string call = function;
    call = call.substr(0, call.rfind("_v"));  // cuda.h gives functions a version
    if (auto found = state.injections.find(call); found != state.injections.end() && found->second.skip-- == 0) {
        const CUresult code = found->second.code;
        state.injections.erase(found);
        if (sticky_codes.count(code)) state.sticky = code;
        return code;
    }
    if (!needs_context) return CUDA_SUCCESS;
    if (stack.contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (!stack.contexts.back()->references) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return state.sticky;
}

static double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

CUresult settle(CUstream stream, const Point* until) {
    while (!stream->work.empty() && !(until && until->done)) {
        const Work work = stream->work.front();
        stream->work.pop_front();
        if (work.wait && !work.wait->done && work.wait->stream) settle(work.wait->stream, work.wait.get());
        if (work.act && !state.sticky) state.sticky = work.act();
        if (work.record) {
            work.record->done = true;
            work.record->at_ms = now_ms();
        }
    }
    return state.sticky;
}

CUresult settle_all() {
    for (const CUstream stream : state.streams) settle(stream);
    return state.sticky;
}

CUresult queue(CUstream stream, Work work) {
    if (!state.streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
    Graph* graph = stream->recording;
    if (!graph) {
        if (work.wait && work.wait->graph) {  // the stream joins the recording
            graph = work.wait->graph;
            stream->recording = graph;
            graph->forks.insert(stream);
        } else {
            if (work.record) work.record->stream = stream;
            stream->work.push_back(std::move(work));
            return CUDA_SUCCESS;
        }
    }
    if (graph->spoilt) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (work.wait && work.wait->graph != graph) return graph->spoilt = CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    if (work.wait && stream == graph->origin) graph->forks.erase(work.wait->stream);
    if (work.record) {
        work.record->graph = graph;
        work.record->stream = stream;
    }
    if (work.act) graph->work.push_back({std::move(work.act), nullptr, nullptr});
    return CUDA_SUCCESS;
}

Graph* recording_of_this_thread() {
    for (const CUstream stream : state.streams)
        if (stream->recording && stream->recording->thread == std::this_thread::get_id()) return stream->recording;
    return nullptr;
}

CUresult forbidden_while_recording() {
    Graph* graph = recording_of_this_thread();
    return graph ? graph->spoilt = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

bool is_device_memory(CUdeviceptr pointer, uint64_t size, int device) {
    auto found = state.blocks.upper_bound(pointer);
    if (found == state.blocks.begin()) return false;
    --found;
    if (device >= 0 && found->second.device != device) return false;
    return found->second.live && pointer + size <= found->first + found->second.size;
}

bool is_registered(const void* pointer, uint64_t size) {
    auto found = state.registered.upper_bound(uintptr_t(pointer));
    if (found == state.registered.begin()) return false;
    --found;
    return uintptr_t(pointer) + size <= found->first + found->second;
}

// The kernels that the tests launch. `add`: unsigned char* values, int count, unsigned char amount.
CUresult run_kernel(const std::string& name, const std::string& parameters, unsigned threads) {
    state.launches += name + "(" + std::to_string(parameters.size()) + " bytes, " + std::to_string(threads) + " threads)\n";
    if (name == "fault") return CUDA_ERROR_ILLEGAL_ADDRESS;
    if (name != "add") return CUDA_SUCCESS;
    unsigned char* values;
    int count;
    std::memcpy(&values, parameters.data(), 8);
    std::memcpy(&count, parameters.data() + 8, 4);
    if (!is_device_memory(CUdeviceptr(values), count)) return CUDA_ERROR_ILLEGAL_ADDRESS;
    for (int i = 0; i < count && i < int(threads); ++i) values[i] += static_cast<unsigned char>(parameters[12]);
    return CUDA_SUCCESS;
}

// What tests ask and set.
#pragma GCC visibility push(default)
extern "C" {

void fake_inject(const char* call, int code, int skip) {
    std::lock_guard guard(state.mutex);
    state.injections[call] = {CUresult(code), skip};
}

// The process's work on the GPU is well again, which no real driver offers.
void fake_heal() {
    std::lock_guard guard(state.mutex);
    state.sticky = CUDA_SUCCESS;
    state.launches.clear();
    state.injections.clear();
    state.streams.clear();
    state.events.clear();
    state.modules.clear();
    state.pools.clear();
    state.graphs.clear();
    state.executables.clear();
    state.registered.clear();
    for (auto& [pointer, block] : state.blocks) block.live = false;
    for (auto& context : state.primary) context.references = 0;
}

// Pools whose allocations may wait for work of other streams.
int fake_waiting_pools() {
    std::lock_guard guard(state.mutex);
    int count = 0;
    for (const CUmemoryPool pool : state.pools) count += pool->waits_for_frees;
    return count;
}

const char* fake_launches() { return state.launches.c_str(); }

// Everything that was not given back.
const char* fake_left() {
    std::lock_guard guard(state.mutex);
    static std::string text;
    text.clear();
    auto say = [](const char* what, size_t count) {
        if (count) text += std::to_string(count) + " " + what + ", ";
    };
    size_t live = 0;
    for (const auto& [pointer, block] : state.blocks) live += block.live;
    say("memory", live);
    say("host memory", state.registered.size());
    say("streams", state.streams.size());
    say("events", state.events.size());
    say("modules", state.modules.size());
    say("pools", state.pools.size());
    say("graphs", state.graphs.size());
    say("executables", state.executables.size());
    say("contexts", size_t(state.primary[0].references + state.primary[1].references));
    say("on the stack of this thread", stack.contexts.size());
    say("stacks of ended threads", size_t(state.stacks_left));
    return text.c_str();
}
}
#pragma GCC visibility pop
