/* SPDX-License-Identifier: Apache-2.0
 *
 * The functions of TensorRT's libraries that its Python bindings are linked to. They are never called: the bindings are
 * only imported, to be asked what they offer.
 */

#define NEVER_CALLED(name) \
    void *name(void) { return 0; }

NEVER_CALLED(createInferBuilder_INTERNAL)
NEVER_CALLED(createInferRefitter_INTERNAL)
NEVER_CALLED(createInferRuntime_INTERNAL)
NEVER_CALLED(createNvOnnxParserRefitter_INTERNAL)
NEVER_CALLED(createNvOnnxParser_INTERNAL)
NEVER_CALLED(getBuilderPluginRegistry)
NEVER_CALLED(getNvOnnxParserVersion)
NEVER_CALLED(getPluginRegistry)
NEVER_CALLED(initLibNvInferPlugins)
