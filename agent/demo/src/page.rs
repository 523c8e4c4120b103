//! The facts as text (curl), HTML (browsers) and JSON (programs). Pure.

use std::fmt::Write as _;

use crate::facts::Section;

const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2433;background:#f6f7fb}
h1{font-size:1.7rem;margin:0}h1 small{display:block;font-size:1rem;font-weight:400;color:#68708a}
section{background:#fff;border-radius:.7rem;box-shadow:0 1px 4px #0002;padding:.9rem 1.3rem;margin:1.1rem 0}
h2{font-size:1.05rem;margin:0 0 .4rem;color:#3451d1}dl{display:grid;grid-template-columns:12rem 1fr;gap:.2rem 1rem;margin:0}
dt{color:#68708a}dd{margin:0;font-family:ui-monospace,monospace;font-size:.9rem;overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#e3e6f0;background:#141824}section{background:#1e2435}h2{color:#8fa4ff}}";

/// For a terminal.
pub fn text(hostname: &str, sections: &[Section]) -> String {
    let mut out = format!("{hostname}\n");
    for section in sections {
        let _ = writeln!(out, "\n{}", section.question);
        for (name, value) in &section.facts {
            let _ = writeln!(out, "  {name:<18} {value}");
        }
    }
    out
}

/// For a browser.
pub fn html(hostname: &str, sections: &[Section]) -> String {
    let host = escaped(hostname);
    let mut out = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{host}</title><style>{STYLE}</style><h1>{host}<small>what this container sees</small></h1>"
    );
    for section in sections {
        let _ = write!(out, "<section><h2>{}</h2><dl>", escaped(section.question));
        for (name, value) in &section.facts {
            let _ = write!(out, "<dt>{}<dd>{}", escaped(name), escaped(value));
        }
        out.push_str("</dl></section>");
    }
    out.push_str("</html>\n");
    out
}

/// For a program: `{"hostname": …, "QUESTION": {"NAME": "VALUE"}}`.
pub fn json(hostname: &str, sections: &[Section]) -> String {
    let mut out = format!("{{\"hostname\":{}", quoted(hostname));
    for section in sections {
        let facts: Vec<String> =
            section.facts.iter().map(|(name, value)| format!("{}:{}", quoted(name), quoted(value))).collect();
        let _ = write!(out, ",{}:{{{}}}", quoted(section.question), facts.join(","));
    }
    out.push_str("}\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<Section> {
        vec![Section { question: "Own \"root\"?", facts: vec![("a<b".into(), "tab\there & \\".into())] }]
    }

    #[test]
    fn what_a_name_contains_stays_text_in_html() {
        let page = html("<script>", &sections());
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
        assert!(page.contains("<dt>a&lt;b<dd>tab\there &amp; \\"), "{page}");
    }

    #[test]
    fn quotes_and_control_characters_are_escaped_in_json() {
        assert_eq!(
            json("h\n", &sections()),
            "{\"hostname\":\"h\\u000a\",\"Own \\\"root\\\"?\":{\"a<b\":\"tab\\u0009here & \\\\\"}}\n"
        );
    }

    #[test]
    fn text_starts_with_the_hostname() {
        assert!(text("web", &sections()).starts_with("web\n\nOwn \"root\"?\n  a<b "));
    }
}
