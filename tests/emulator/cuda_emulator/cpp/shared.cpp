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

uintptr_t library_base()
{
    Dl_info info = {};
    dladdr(reinterpret_cast<void *>(&find_shared), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
}

int find_thread_local(dl_phdr_info *info, size_t, void *found)
{
    static const uintptr_t base = library_base();
    if (info->dlpi_addr != base)
        return 0;
    // `dlpi_tls_data` is null for memory that was allocated, but not by this function.
    const unsigned long first[] = {info->dlpi_tls_modid, 0};
    for (int i = 0; i < info->dlpi_phnum; ++i)
        if (info->dlpi_phdr[i].p_type == PT_TLS)
            *static_cast<Range *>(found) = {static_cast<unsigned char *>(__tls_get_addr(first)),
                                            info->dlpi_phdr[i].p_memsz};
    return 1;
}

}  // namespace

void find_shared(unsigned dynamic_size)
{
    const Range dynamic = dynamic_shared();
    Range all = {nullptr, 0};
    dl_iterate_phdr(find_thread_local, &all);
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

uint64_t offset_in_library(const void *instruction)
{
    const auto at = reinterpret_cast<uintptr_t>(instruction);
    return at > library_base() ? at - library_base() : 0;
}

}  // namespace emulator
