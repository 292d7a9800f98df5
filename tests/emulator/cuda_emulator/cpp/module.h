// SPDX-License-Identifier: Apache-2.0
// Makes a table entry of a kernel from its type. The generated file of a module includes this after the `.cu` file.
#pragma once

#include <type_traits>
#include <utility>

#include "launch.h"
#include "scheduler.h"

namespace emulator {

template <class T>
constexpr Parameter parameter_of()
{
    if constexpr (std::is_pointer_v<T>)
        return {sizeof(T), 'P'};
    else if constexpr (std::is_same_v<T, bool>)
        return {sizeof(T), 'b'};
    else if constexpr (std::is_floating_point_v<T>)
        return {sizeof(T), 'f'};
    else if constexpr (std::is_integral_v<T>)
        return {sizeof(T), std::is_signed_v<T> ? 'i' : 'u'};
    else
        return {sizeof(T), 'V'};
}

template <auto function>
struct Entry;

template <class... Arguments, void (*function)(Arguments...)>
struct Entry<function> {
    static constexpr Parameter parameters[] = {parameter_of<std::remove_cv_t<Arguments>>()..., {0, 0}};

    template <size_t... Index>
    EMULATOR_UNCHECKED static void call_with(void **arguments, std::index_sequence<Index...>)
    {
        function(*static_cast<std::remove_cv_t<Arguments> *>(arguments[Index])...);
    }

    static void call([[maybe_unused]] void **arguments)
    {
        call_with(arguments, std::index_sequence_for<Arguments...>());
    }

    static constexpr Kernel kernel(const char *name, unsigned largest_block)
    {
        return {name, call, parameters, sizeof...(Arguments), largest_block};
    }
};

}  // namespace emulator
