// SPDX-License-Identifier: Apache-2.0
"use strict";

// The call of the picture and its settings, in Python, by curl and on the command line.
function snippets() {
  const file = image ? image.name : "photo.jpg";
  const isPdf = Boolean(image && image.pdf);
  const keyword = ([name, value]) => `, ${name}=${value === true ? "True" : value}`;
  const keywords = given().map((one) => (isPdf && one[0] === "page" ? `, pages=[${one[1]}]` : keyword(one))).join("");
  const quoted = `'${file.replaceAll("'", "'\\''")}'`;
  const detect = isPdf ? "[found] = detector.detect_pages" : "found = detector.detect";
  const call = `${detect}(${JSON.stringify(file)}${keywords})`;
  const python = config.url
    ? `from ocdserve.client import TextDetector\n\nwith TextDetector(${JSON.stringify(config.url)}) as detector:\n`
      + `    ${call}\nprint(found.quads, found.scores)`
    : `from ocdserve.backend import Detector\n\ndetector = Detector.load()\n`
      + `${call}\nprint(found.quads, found.scores)`;
  const parameters = JSON.stringify(Object.fromEntries(given()));
  const query = new URLSearchParams(given()).toString();
  // A server reads no PDF: of one the playground renders the page.
  const curl = config.url && config.url.startsWith("http") && !isPdf
    ? `image=${quoted}; size=$(stat -c %s "$image")\n`
      + `header='{"inputs":[{"name":"IMAGE","shape":[1,1],"datatype":"BYTES",\n`
      + `"parameters":{"binary_data_size":'$((size+4))'}}],"parameters":${parameters},\n`
      + `"outputs":[{"name":"QUADS"},{"name":"SCORES"},{"name":"COUNT"}]}'\n`
      + `length=$(printf '\\\\x%02x' $((size&255)) $((size>>8&255)) $((size>>16&255)) $((size>>24&255)))\n`
      + `{ printf '%s' "$header"; printf "$length"; cat "$image"; } |\n`
      + `  curl -s --data-binary @- -H "Inference-Header-Content-Length: \${#header}" \\\n`
      + `  ${config.url.replace(/\/$/, "")}/v2/models/ocdnet/infer`
    : `curl -s --data-binary @${quoted} \\\n  '${location.origin}/detect${query ? `?${query}` : ""}'`;
  const flags = given().map(([name, value]) => ` --${name.replaceAll("_", "-")}${value === true ? "" : ` ${value}`}`);
  const cli = `ocdserve detect ${quoted}${flags.join("")}${config.url ? ` --url ${config.url}` : ""} --format json`;
  return { python, curl, cli };
}
