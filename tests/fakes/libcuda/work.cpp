// SPDX-License-Identifier: Apache-2.0
// Streams, events, graphs, modules and launches; and how `cuda.bindings` finds all of it.
#include "state.h"

#include <elf.h>

#include <cstring>

#define ENTER(...)                                                          \
    std::lock_guard guard(state.mutex);                                     \
    if (const CUresult code = enter(__func__ __VA_OPT__(,) __VA_ARGS__)) return code

#define KNOWN(set, handle) \
    if (!state.set.count(handle)) return CUDA_ERROR_INVALID_HANDLE

extern "C" {

CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned flags) {
    ENTER();
    if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;  // this project makes no other
    *stream = new CUstream_st;
    state.streams.insert(*stream);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamDestroy(CUstream stream) {
    ENTER();
    KNOWN(streams, stream);
    if (stream->recording) stream->recording->spoilt = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    const CUresult code = settle(stream);
    state.streams.erase(stream);
    return code;
}

CUresult CUDAAPI cuStreamSynchronize(CUstream stream) {
    ENTER();
    KNOWN(streams, stream);
    if (stream->recording) return stream->recording->spoilt = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return settle(stream);
}

CUresult CUDAAPI cuStreamQuery(CUstream stream) {
    ENTER();
    KNOWN(streams, stream);
    return stream->work.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    ENTER();
    KNOWN(events, event);
    return event->point ? queue(stream, {nullptr, nullptr, event->point}) : CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned) {
    ENTER();
    *event = new CUevent_st;
    state.events.insert(*event);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventDestroy(CUevent event) {
    ENTER();
    return state.events.erase(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
    ENTER();
    KNOWN(events, event);
    event->point = std::make_shared<Point>();
    return queue(stream, {nullptr, event->point, nullptr});
}

CUresult CUDAAPI cuEventSynchronize(CUevent event) {
    ENTER();
    KNOWN(events, event);
    if (!event->point) return CUDA_SUCCESS;
    if (event->point->graph) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return event->point->done ? state.sticky : settle(event->point->stream, event->point.get());
}

CUresult CUDAAPI cuEventElapsedTime(float* ms, CUevent from, CUevent to) {
    ENTER();
    KNOWN(events, from);
    KNOWN(events, to);
    if (!from->point || !to->point) return CUDA_ERROR_INVALID_HANDLE;
    if (!from->point->done || !to->point->done) return CUDA_ERROR_NOT_READY;
    return *ms = float(to->point->at_ms - from->point->at_ms), CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    ENTER();
    KNOWN(streams, stream);
    if (stream->recording || mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) return CUDA_ERROR_INVALID_VALUE;
    const CUgraph graph = new CUgraph_st;
    graph->graph.origin = stream;
    graph->graph.thread = std::this_thread::get_id();
    stream->recording = &graph->graph;
    state.graphs.insert(graph);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    ENTER();
    KNOWN(streams, stream);
    Graph* recorded = stream->recording;
    if (!recorded || recorded->origin != stream) return CUDA_ERROR_INVALID_VALUE;
    if (recorded->thread != std::this_thread::get_id()) return CUDA_ERROR_INVALID_VALUE;
    for (const CUstream other : state.streams)
        if (other->recording == recorded) other->recording = nullptr;
    *graph = reinterpret_cast<CUgraph>(recorded);  // its first member
    if (!recorded->spoilt && recorded->forks.empty()) return CUDA_SUCCESS;
    const CUresult code = recorded->spoilt ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    state.graphs.erase(*graph);
    *graph = nullptr;
    return code;
}

CUresult CUDAAPI cuGraphInstantiate(CUgraphExec* executable, CUgraph graph, unsigned long long) {
    ENTER();
    KNOWN(graphs, graph);
    *executable = new CUgraphExec_st{graph->graph.work};
    state.executables.insert(*executable);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphDestroy(CUgraph graph) {
    ENTER();
    return state.graphs.erase(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec executable) {
    ENTER();
    return state.executables.erase(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    ENTER();
    KNOWN(executables, executable);
    for (const Work& work : executable->work)
        if (const CUresult code = queue(stream, work)) return code;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
    ENTER();
    const auto* header = static_cast<const Elf64_Ehdr*>(image);
    if (std::memcmp(header->e_ident, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
    const char* start = static_cast<const char*>(image);
    *module = new CUmod_st{std::string(start, header->e_shoff + size_t(header->e_shentsize) * header->e_shnum), {}};
    state.modules.insert(*module);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleUnload(CUmodule module) {
    ENTER();
    return state.modules.erase(module) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    ENTER();
    KNOWN(modules, module);
    // A cubin holds each kernel's code in a section of this name.
    if (module->image.find(std::string(".text.") + name + '\0') == std::string::npos) return CUDA_ERROR_NOT_FOUND;
    auto& kept = module->functions[name];
    if (!kept) kept.reset(new CUfunc_st{name});
    return *function = kept.get(), CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    ENTER();
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > 227 * 1024)
        return CUDA_ERROR_INVALID_VALUE;
    return function->shared_allowed = value, CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncSetBlockShape(CUfunction, int, int, int) {
    ENTER();
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** parameters,
                                void** extra) {
    ENTER();
    const uint64_t block = uint64_t(block_x) * block_y * block_z, grid = uint64_t(grid_x) * grid_y * grid_z;
    if (!block || block > 1024 || !grid || int(shared) > function->shared_allowed || parameters || !extra)
        return CUDA_ERROR_INVALID_VALUE;
    if (extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER || extra[2] != CU_LAUNCH_PARAM_BUFFER_SIZE ||
        extra[4] != CU_LAUNCH_PARAM_END)
        return CUDA_ERROR_INVALID_VALUE;
    const std::string values(static_cast<char*>(extra[1]), *static_cast<size_t*>(extra[3]));
    return queue(stream, {[name = function->name, values, threads = unsigned(grid * block)] {
        return run_kernel(name, values, threads);
    }, nullptr, nullptr});
}

CUresult CUDAAPI cuGetProcAddress(const char* name, void** function, int, cuuint64_t,
                                  CUdriverProcAddressQueryResult* found) {
    // The macros of cuda.h do not touch the text, so a name without its version finds the newest function.
#define ENTRY(f) {#f, reinterpret_cast<void*>(f)}
    static const std::map<std::string, void*> entries = {
        ENTRY(cuGetErrorName), ENTRY(cuGetErrorString), ENTRY(cuInit), ENTRY(cuDriverGetVersion),
        ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetName), ENTRY(cuDeviceGetAttribute),
        ENTRY(cuDevicePrimaryCtxRetain), ENTRY(cuDevicePrimaryCtxRelease), ENTRY(cuCtxPushCurrent),
        ENTRY(cuCtxPopCurrent), ENTRY(cuCtxGetCurrent), ENTRY(cuCtxGetDevice), ENTRY(cuCtxSynchronize),
        ENTRY(cuMemGetInfo), ENTRY(cuMemPoolCreate), ENTRY(cuMemPoolDestroy), ENTRY(cuMemPoolTrimTo),
        ENTRY(cuMemPoolSetAttribute), ENTRY(cuMemPoolGetAttribute), ENTRY(cuMemAllocFromPoolAsync),
        ENTRY(cuMemFreeAsync), ENTRY(cuMemHostRegister), ENTRY(cuMemHostUnregister), ENTRY(cuMemcpyHtoDAsync),
        ENTRY(cuMemcpyDtoHAsync), ENTRY(cuMemcpyDtoDAsync), ENTRY(cuMemcpyPeerAsync), ENTRY(cuMemsetD8Async), ENTRY(cuStreamCreate),
        ENTRY(cuStreamDestroy), ENTRY(cuStreamSynchronize), ENTRY(cuStreamQuery), ENTRY(cuStreamWaitEvent),
        ENTRY(cuEventCreate), ENTRY(cuEventDestroy), ENTRY(cuEventRecord), ENTRY(cuEventSynchronize),
        ENTRY(cuEventElapsedTime), ENTRY(cuStreamBeginCapture), ENTRY(cuStreamEndCapture), ENTRY(cuGraphInstantiate),
        ENTRY(cuGraphInstantiateWithFlags), ENTRY(cuGraphDestroy), ENTRY(cuGraphExecDestroy), ENTRY(cuGraphLaunch), ENTRY(cuLaunchKernel),
    };
#undef ENTRY
    const auto entry = entries.find(name);
    *function = entry == entries.end() ? nullptr : entry->second;
    if (found) *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
}
