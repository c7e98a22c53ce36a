// Colours of code: comments, strings, numbers and the words that most languages share. Good enough, and never wrong by
// more than a colour.

const HASH = /^(py|python|sh|bash|shell|zsh|console|rb|ruby|r|perl|pl|yaml|yml|toml|ini|make|makefile|dockerfile|conf)$/;
const DASHES = /^(sql|lua|haskell|hs)$/;
const MARKUP = /^(html|xml|svg|markdown|md|text|txt|plain|diff|)$/;
const WORDS =
  "abstract and as assert async await begin break case catch class const continue def default del delete do elif else " +
  "end enum except export extends extern false finally fn for from func function global go if impl implements import " +
  "in interface is lambda let loop match mod module mut namespace new nil None not null of or package pass private " +
  "protected pub public raise return select self static struct super switch then this throw trait True False true try " +
  "type typedef typeof undefined union unless unsafe until use using var void where while with yield int float double " +
  "char bool string long unsigned SELECT FROM WHERE INSERT INTO UPDATE DELETE JOIN ON GROUP BY ORDER CREATE TABLE VALUES SET " +
  "LIMIT AS AND OR NOT NULL";
const STRING = String.raw`"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|${"`"}(?:\\.|[^${"`"}\\])*${"`"}`;
const NUMBER = String.raw`\b(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\b`;

function grammar(language) {
  const comment = HASH.test(language) ? "#.*" : DASHES.test(language) ? "--.*" : String.raw`\/\/.*|\/\*[^]*?(?:\*\/|$)`;
  const triple = HASH.test(language) ? String.raw`"""[^]*?(?:"""|$)|` : "";
  const words = `\\b(?:${WORDS.split(" ").join("|")})\\b`;
  return new RegExp(`(?<comment>${comment})|(?<string>${triple}${STRING})|(?<number>${NUMBER})|(?<word>${words})`, "g");
}

/** Text nodes and spans for `text`, appended to `parent`. */
export function colour(parent, text, language) {
  if (MARKUP.test(language) || text.length > 50_000) {
    parent.append(text);
    return;
  }
  let at = 0;
  for (const match of text.matchAll(grammar(language))) {
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    if (!match[0]) continue;
    parent.append(text.slice(at, match.index));
    const span = document.createElement("span");
    span.className = `code-${kind}`;
    span.textContent = match[0];
    parent.append(span);
    at = match.index + match[0].length;
  }
  parent.append(text.slice(at));
}
