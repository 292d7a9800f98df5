// SPDX-License-Identifier: Apache-2.0
// The part of CUDA's driver API that pycuda and cuda.bindings use for this project, over the host's memory.
// Includes cuda.h, whose macros give every function the version's name, and whose declarations check this file.
#include "state.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#define ENTER(...)                                                          \
    std::lock_guard guard(state.mutex);                                     \
    if (const CUresult code = enter(__func__ __VA_OPT__(,) __VA_ARGS__)) return code

#define NOT_WHILE_RECORDING \
    if (const CUresult code = forbidden_while_recording()) return code

namespace {

struct Text {
    int code;
    const char* name;
    const char* meaning;
};
const Text texts[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
};

CUresult allocate(CUdeviceptr* pointer, uint64_t size, CUmemoryPool pool) {
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    uint64_t live = 0;
    for (const auto& [start, block] : state.blocks) live += block.live ? block.size : 0;
    if (live + size > state.capacity) return CUDA_ERROR_OUT_OF_MEMORY;
    void* memory = std::aligned_alloc(512, (size + 511) / 512 * 512);
    std::memset(memory, 0xCD, size);
    *pointer = CUdeviceptr(memory);
    state.blocks[*pointer] = {size, true, pool, stack.contexts.back()->device};
    if (pool) pool->used += size;
    return CUDA_SUCCESS;
}

CUresult take_back(CUdeviceptr pointer) {
    auto found = state.blocks.find(pointer);
    if (found == state.blocks.end() || !found->second.live) return CUDA_ERROR_INVALID_VALUE;
    found->second.live = false;
    std::memset(reinterpret_cast<void*>(pointer), 0xDD, found->second.size);
    if (found->second.pool) found->second.pool->used -= found->second.size;
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
    for (const Text& entry : texts)
        if (entry.code == error) return *text = entry.name, CUDA_SUCCESS;
    return *text = nullptr, CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuGetErrorString(CUresult error, const char** text) {
    for (const Text& entry : texts)
        if (entry.code == error) return *text = entry.meaning, CUDA_SUCCESS;
    return *text = nullptr, CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuInit(unsigned) {
    state.initialised = true;
    std::lock_guard guard(state.mutex);
    return enter(__func__, false);
}

CUresult CUDAAPI cuDriverGetVersion(int* version) { return *version = 12090, CUDA_SUCCESS; }

// NVRTC asks, wherever there is a driver, and takes no for an answer.
CUresult CUDAAPI cuGetExportTable(const void** table, const CUuuid*) {
    return *table = nullptr, CUDA_ERROR_NOT_FOUND;
}

CUresult CUDAAPI cuDeviceGetCount(int* count) {
    ENTER(false);
    return *count = 2, CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice* device, int index) {
    ENTER(false);
    if (index < 0 || index > 1) return CUDA_ERROR_INVALID_DEVICE;
    return *device = index, CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice device) {
    ENTER(false);
    std::snprintf(name, size_t(length), "Simulated GPU %d", device);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    ENTER(false);
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = device ? 7 : 9; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = device ? 5 : 0; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
        default: *value = 1;
    }
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
    ENTER(false);
    *major = device ? 7 : 9;
    *minor = device ? 5 : 0;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    ENTER(false);
    ++state.primary[device].references;
    return *context = &state.primary[device], CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice device) {
    ENTER(false);
    if (!state.primary[device].references) return CUDA_ERROR_INVALID_CONTEXT;
    --state.primary[device].references;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPushCurrent(CUcontext context) {
    ENTER(false);
    if (!context || !context->references) return CUDA_ERROR_INVALID_CONTEXT;
    stack.contexts.push_back(context);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPopCurrent(CUcontext* context) {
    ENTER(false);
    if (stack.contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = stack.contexts.back();
    stack.contexts.pop_back();
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetCurrent(CUcontext* context) {
    ENTER(false);
    return *context = stack.contexts.empty() ? nullptr : stack.contexts.back(), CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetDevice(CUdevice* device) {
    ENTER();
    return *device = stack.contexts.back()->device, CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSynchronize() {
    ENTER();
    NOT_WHILE_RECORDING;
    return settle_all();
}

CUresult CUDAAPI cuMemGetInfo(size_t* free, size_t* total) {
    ENTER();
    uint64_t live = 0;
    for (const auto& [start, block] : state.blocks) live += block.live ? block.size : 0;
    *total = state.capacity;
    return *free = state.capacity - live, CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemPoolCreate(CUmemoryPool* pool, const CUmemPoolProps* properties) {
    ENTER();
    if (properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED || properties->handleTypes != CU_MEM_HANDLE_TYPE_NONE ||
        properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        properties->location.id != stack.contexts.back()->device)
        return CUDA_ERROR_INVALID_VALUE;
    *pool = new CUmemPoolHandle_st;
    state.pools.insert(*pool);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemPoolDestroy(CUmemoryPool pool) {
    ENTER();
    return state.pools.erase(pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuMemPoolTrimTo(CUmemoryPool pool, size_t) {
    ENTER();
    return state.pools.count(pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
    ENTER();
    if (attribute == CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES) {
        pool->waits_for_frees = *static_cast<int*>(value);
        return CUDA_SUCCESS;
    }
    if (attribute != CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) return CUDA_ERROR_INVALID_VALUE;
    pool->threshold = *static_cast<uint64_t*>(value);
    return pool->threshold == UINT64_MAX ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute, void* value) {
    ENTER();
    return *static_cast<uint64_t*>(value) = pool->used, CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAllocFromPoolAsync(CUdeviceptr* pointer, size_t size, CUmemoryPool pool, CUstream stream) {
    ENTER();
    if (!state.pools.count(pool) || !state.streams.count(stream)) return CUDA_ERROR_INVALID_VALUE;
    if (stream->recording) return CUDA_ERROR_NOT_SUPPORTED;  // this project never has memory belong to a graph
    return allocate(pointer, size, pool);
}

CUresult CUDAAPI cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
    ENTER();
    if (!is_device_memory(pointer, 1)) return CUDA_ERROR_INVALID_VALUE;
    // As early as the order allows: work that should have been before, and was not, then fails.
    const CUresult code = queue(stream, {[pointer] { return take_back(pointer); }, nullptr, nullptr});
    return code || stream->recording ? code : settle(stream);
}

CUresult CUDAAPI cuMemHostRegister(void* pointer, size_t size, unsigned) {
    ENTER();
    NOT_WHILE_RECORDING;
    if (is_registered(pointer, 1)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    *static_cast<volatile char*>(pointer) = 0;  // it must be there
    state.registered[uintptr_t(pointer)] = size;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemHostUnregister(void* pointer) {
    ENTER();
    NOT_WHILE_RECORDING;
    (void)*static_cast<volatile char*>(pointer);  // it must be there still
    return state.registered.erase(uintptr_t(pointer)) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr target, const void* source, size_t size, CUstream stream) {
    ENTER();
    // Of ordinary memory the driver takes a copy before the call returns; not so when it records.
    std::string copied;
    if (!is_registered(source, size) && !(state.streams.count(stream) && stream->recording))
        copied.assign(static_cast<const char*>(source), size);
    return queue(stream, {[=] {
        if (!is_device_memory(target, size)) return CUDA_ERROR_ILLEGAL_ADDRESS;
        std::memcpy(reinterpret_cast<void*>(target), copied.empty() ? source : copied.data(), size);
        return CUDA_SUCCESS;
    }, nullptr, nullptr});
}

CUresult CUDAAPI cuMemcpyDtoHAsync(void* target, CUdeviceptr source, size_t size, CUstream stream) {
    ENTER();
    const bool waits = !is_registered(target, size) && !(state.streams.count(stream) && stream->recording);
    const CUresult code = queue(stream, {[=] {
        if (!is_device_memory(source, size)) return CUDA_ERROR_ILLEGAL_ADDRESS;
        std::memcpy(target, reinterpret_cast<void*>(source), size);
        return CUDA_SUCCESS;
    }, nullptr, nullptr});
    return code || !waits ? code : settle(stream);
}

CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
    ENTER();
    const CUcontext context = stack.contexts.back();
    return cuMemcpyPeerAsync(target, context, source, context, size, stream);
}

CUresult CUDAAPI cuMemcpyPeerAsync(CUdeviceptr target, CUcontext target_context, CUdeviceptr source,
                                   CUcontext source_context, size_t size, CUstream stream) {
    ENTER();
    if (!target_context->references || !source_context->references) return CUDA_ERROR_INVALID_CONTEXT;
    return queue(stream, {[=, to = target_context->device, of = source_context->device] {
        if (!is_device_memory(target, size, to) || !is_device_memory(source, size, of)) return CUDA_ERROR_ILLEGAL_ADDRESS;
        std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), size);
        return CUDA_SUCCESS;
    }, nullptr, nullptr});
}

CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t size, CUstream stream) {
    ENTER();
    return queue(stream, {[=] {
        if (!is_device_memory(target, size)) return CUDA_ERROR_ILLEGAL_ADDRESS;
        std::memset(reinterpret_cast<void*>(target), value, size);
        return CUDA_SUCCESS;
    }, nullptr, nullptr});
}
}
