// SPDX-License-Identifier: Apache-2.0
// What it declares is in half.h.
#pragma once
