// SPDX-License-Identifier: Apache-2.0
#include "shared.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

#include "launch.h"

extern "C" void *__tls_get_addr(const unsigned long *module_and_offset);

namespace emulator {

namespace {

// What lies before the dynamic array, what of it is in use with its margin, and what lies after it.
Range parts[3];
uintptr_t base;
Range library;

int find_library(dl_phdr_info *info, size_t, void *found)
{
    if (info->dlpi_addr != base)
        return 0;
    // `dlpi_tls_data` is null for memory that was allocated, but not by this function.
    const unsigned long first[] = {info->dlpi_tls_modid, 0};
    uintptr_t end = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto &segment = info->dlpi_phdr[i];
        if (segment.p_type == PT_TLS)
            *static_cast<Range *>(found) = {static_cast<unsigned char *>(__tls_get_addr(first)), segment.p_memsz};
        if (segment.p_type == PT_LOAD && segment.p_vaddr + segment.p_memsz > end)
            end = segment.p_vaddr + segment.p_memsz;
    }
    library = {reinterpret_cast<unsigned char *>(base), end};
    return 1;
}

bool is_in(const Range &range, const void *address)
{
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(range.begin) < range.size;
}

}  // namespace

void find_shared(unsigned dynamic_size)
{
    const Range dynamic = dynamic_shared();
    Dl_info info = {};
    dladdr(reinterpret_cast<void *>(&find_shared), &info);
    base = reinterpret_cast<uintptr_t>(info.dli_fbase);
    Range all = {nullptr, 0};
    dl_iterate_phdr(find_library, &all);
    parts[0] = parts[1] = parts[2] = {nullptr, 0};
    if (dynamic.size == 0) {
        parts[0] = all;
        return;
    }
    unsigned char *end = dynamic.begin + dynamic.size;
    parts[0] = {all.begin, static_cast<size_t>(dynamic.begin - all.begin)};
    parts[1] = {dynamic.begin, dynamic_size + dynamic_shared_margin};
    parts[2] = {end, static_cast<size_t>(all.begin + all.size - end)};
}

size_t shared_size() { return parts[0].size + parts[1].size + parts[2].size; }

void poison_shared()
{
    for (const Range &part : parts)
        if (part.size != 0)
            memset(part.begin, garbage, part.size);
}

void save_shared(std::vector<unsigned char> &copy)
{
    unsigned char *to = copy.data();
    for (const Range &part : parts) {
        if (part.size != 0)
            memcpy(to, part.begin, part.size);
        to += part.size;
    }
}

void load_shared(const std::vector<unsigned char> &copy)
{
    const unsigned char *from = copy.data();
    for (const Range &part : parts) {
        if (part.size != 0)
            memcpy(part.begin, from, part.size);
        from += part.size;
    }
}

bool is_margin_intact(unsigned dynamic_size)
{
    if (parts[1].size == 0)
        return true;
    const unsigned char *margin = parts[1].begin + dynamic_size;
    for (size_t i = 0; i < dynamic_shared_margin; ++i)
        if (margin[i] != garbage)
            return false;
    return true;
}

size_t offset_in_shared(const void *address)
{
    size_t before = 0;
    for (const Range &part : parts) {
        const auto offset = static_cast<size_t>(static_cast<const unsigned char *>(address) - part.begin);
        if (is_in(part, address))
            return &part == &parts[1] && offset >= part.size - dynamic_shared_margin ? not_shared : before + offset;
        before += part.size;
    }
    return not_shared;
}

bool is_in_library(const void *address) { return is_in(library, address); }

uint64_t offset_in_library(const void *instruction) { return reinterpret_cast<uintptr_t>(instruction) - base; }

}  // namespace emulator
