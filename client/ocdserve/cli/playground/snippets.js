// SPDX-License-Identifier: Apache-2.0
"use strict";

// The call of the picture and its settings, in Python, by curl and on the command line.
function snippets() {
  const file = image ? image.name : "photo.jpg";
  const isPdf = Boolean(image && image.pdf);
  const [verb, subject, local, served, model, outputs, result] = reads()
    ? ["read", "reader", "Reader", "TextReader", "ocr", ["QUADS", "TEXTS", "TEXT_SCORES", "COUNT"], "found.text"]
    : ["detect", "detector", "Detector", "TextDetector", "ocdnet", ["QUADS", "SCORES", "COUNT"], "found.quads, found.scores"];
  const literal = (value) => ({ true: "True", false: "False" })[value] ?? value;
  const keyword = ([name, value]) => `, ${name}=${literal(value)}`;
  const keywords = given().map((one) => (isPdf && one[0] === "page" ? `, pages=[${one[1]}]` : keyword(one))).join("");
  const quoted = `'${file.replaceAll("'", "'\\''")}'`;
  const target = isPdf ? `[found] = ${subject}.${verb}_pages` : `found = ${subject}.${verb}`;
  const call = `${target}(${JSON.stringify(file)}${keywords})`;
  const python = config.url
    ? `from ocdserve.client import ${served}\n\nwith ${served}(${JSON.stringify(config.url)}) as ${subject}:\n`
      + `    ${call}\nprint(${result})`
    : `from ocdserve.backend import ${local}\n\n${subject} = ${local}.load()\n`
      + `${call}\nprint(${result})`;
  const parameters = JSON.stringify(Object.fromEntries(given()));
  const query = new URLSearchParams(given()).toString();
  // A server reads no PDF: of one the playground renders the page.
  const curl = config.url && config.url.startsWith("http") && !isPdf
    ? `image=${quoted}; size=$(stat -c %s "$image")\n`
      + `header='{"inputs":[{"name":"IMAGE","shape":[1,1],"datatype":"BYTES",\n`
      + `"parameters":{"binary_data_size":'$((size+4))'}}],"parameters":${parameters},\n`
      + `"outputs":[${outputs.map((name) => `{"name":"${name}"}`).join(",")}]}'\n`
      + `length=$(printf '\\\\x%02x' $((size&255)) $((size>>8&255)) $((size>>16&255)) $((size>>24&255)))\n`
      + `{ printf '%s' "$header"; printf "$length"; cat "$image"; } |\n`
      + `  curl -s --data-binary @- -H "Inference-Header-Content-Length: \${#header}" \\\n`
      + `  ${config.url.replace(/\/$/, "")}/v2/models/${model}/infer`
    : `curl -s --data-binary @${quoted} \\\n  '${location.origin}/${verb}${query ? `?${query}` : ""}'`;
  const flags = given().map(([name, value]) => {
    const flag = name.replaceAll("_", "-");
    return value === false ? ` --no-${flag}` : ` --${flag}${value === true ? "" : ` ${value}`}`;
  });
  const url = config.url ? ` --url ${config.url}` : "";
  const cli = `ocdserve ${verb} ${quoted}${flags.join("")}${url}${verb === "detect" ? " --format json" : ""}`;
  return { python, curl, cli };
}
