//! A network configuration from an operator's template, filled in with the ranges of the node's pods. Templates are
//! those that containerd takes: Go's `text/template` with the fields `PodCIDR`, `PodCIDRRanges` and `Routes`. Of the
//! language there is what such templates use: fields, variables, `range`, `if`, `else`, `end`, comments, trim marks.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Deepest nesting of blocks.
const DEPTH: usize = 16;

/// A value in a template.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Number(usize),
    List(Vec<String>),
}

impl Value {
    fn is_true(&self) -> bool {
        match self {
            Value::Text(text) => !text.is_empty(),
            Value::Number(number) => *number != 0,
            Value::List(list) => !list.is_empty(),
        }
    }

    fn text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::List(list) => format!("[{}]", list.join(" ")),
        }
    }
}

/// A piece of a template.
#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Print(String),
    Range { names: Vec<String>, over: String, body: Vec<Part>, otherwise: Vec<Part> },
    If { on: String, body: Vec<Part>, otherwise: Vec<Part> },
}

/// The filled-in template; `ranges` are those of the pods' addresses, the first also as `PodCIDR`.
///
/// # Errors
/// What the template says that is not understood here.
pub(in crate::network) fn fill(template: &str, ranges: &[String]) -> Result<String, String> {
    let mut tokens = tokens(template)?.into_iter();
    let (parts, end) = parse(&mut tokens, 0)?;
    if let Some(end) = end {
        return Err(format!("{{{{{end}}}}} without a block"));
    }
    let mut values = BTreeMap::from([
        (".PodCIDR".to_owned(), Value::Text(ranges.first().cloned().unwrap_or_default())),
        (".PodCIDRRanges".to_owned(), Value::List(ranges.to_vec())),
        (".Routes".to_owned(), Value::List(routes(ranges))),
    ]);
    let mut text = String::new();
    write(&parts, &mut values, &mut text)?;
    Ok(text)
}

/// A default route for each family of addresses that there is.
fn routes(ranges: &[String]) -> Vec<String> {
    let is_v4 = |range: &String| range.split('/').next().and_then(|a| a.parse::<IpAddr>().ok()).map(|a| a.is_ipv4());
    let has = |v4: bool| ranges.iter().any(|range| is_v4(range) == Some(v4));
    [(has(true), "0.0.0.0/0"), (has(false), "::/0")].iter().filter(|(has, _)| *has).map(|(_, r)| (*r).into()).collect()
}

enum Token {
    Text(String),
    Action(String),
}

fn tokens(mut rest: &str) -> Result<Vec<Token>, String> {
    let mut all = Vec::new();
    while let Some((text, behind)) = rest.split_once("{{") {
        let (mut action, mut after) = behind.split_once("}}").ok_or("{{ without }}")?;
        let mut text = text;
        if let Some(trimmed) = action.strip_prefix("- ") {
            (text, action) = (text.trim_end(), trimmed);
        }
        if let Some(trimmed) = action.strip_suffix(" -") {
            (action, after) = (trimmed, after.trim_start());
        }
        all.push(Token::Text(text.to_owned()));
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            all.push(Token::Action(action.to_owned()));
        }
        rest = after;
    }
    all.push(Token::Text(rest.to_owned()));
    Ok(all)
}

/// The parts up to the end of a block; which word ended it.
fn parse(tokens: &mut impl Iterator<Item = Token>, depth: usize) -> Result<(Vec<Part>, Option<String>), String> {
    if depth > DEPTH {
        return Err(format!("more than {DEPTH} blocks in each other"));
    }
    let mut parts = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            Token::Text(text) => {
                parts.push(Part::Text(text));
                continue;
            }
            Token::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        match word {
            "end" | "else" if rest.is_empty() => return Ok((parts, Some(word.to_owned()))),
            "if" => {
                let (body, otherwise) = block(tokens, depth)?;
                parts.push(Part::If { on: rest.trim().to_owned(), body, otherwise });
            }
            "range" => {
                let (body, otherwise) = block(tokens, depth)?;
                let (names, over) = rest.split_once(":=").unwrap_or(("", rest));
                let names = names.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
                parts.push(Part::Range { names: names.collect(), over: over.trim().to_owned(), body, otherwise });
            }
            _ if action.starts_with(['.', '$']) && rest.is_empty() => parts.push(Part::Print(action)),
            _ => return Err(format!("{{{{{action}}}}} is not understood")),
        }
    }
    Ok((parts, None))
}

fn block(tokens: &mut impl Iterator<Item = Token>, depth: usize) -> Result<(Vec<Part>, Vec<Part>), String> {
    let (body, end) = parse(tokens, depth + 1)?;
    match end.as_deref() {
        Some("end") => Ok((body, Vec::new())),
        Some("else") => match parse(tokens, depth + 1)? {
            (otherwise, Some(end)) if end == "end" => Ok((body, otherwise)),
            _ => Err("{{else}} without {{end}}".into()),
        },
        _ => Err("a block without {{end}}".into()),
    }
}

fn write(parts: &[Part], values: &mut BTreeMap<String, Value>, to: &mut String) -> Result<(), String> {
    let known = |values: &BTreeMap<String, Value>, name: &str| {
        values.get(name).cloned().ok_or_else(|| format!("there is no {name:?} for templates"))
    };
    for part in parts {
        match part {
            Part::Text(text) => to.push_str(text),
            Part::Print(name) => to.push_str(&known(values, name)?.text()),
            Part::If { on, body, otherwise } => {
                let chosen = if known(values, on)?.is_true() { body } else { otherwise };
                write(chosen, values, to)?;
            }
            Part::Range { names, over, body, otherwise } => {
                let Value::List(list) = known(values, over)? else { return Err(format!("{over:?} is not a list")) };
                if list.is_empty() {
                    write(otherwise, values, to)?;
                }
                for (at, item) in list.into_iter().enumerate() {
                    let item = Value::Text(item);
                    match names.as_slice() {
                        [] => {}
                        [one] => drop(values.insert(one.clone(), item.clone())),
                        [index, one] => {
                            values.insert(index.clone(), Value::Number(at));
                            values.insert(one.clone(), item.clone());
                        }
                        _ => return Err("range has one or two variables".into()),
                    }
                    values.insert(".".to_owned(), item);
                    write(body, values, to)?;
                }
                values.remove(".");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_template_gives_a_configuration_for_both_families() {
        let template = r#"{"type": "ptp", "subnet": "{{.PodCIDR}}",
            "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
            "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}"#;
        let filled = fill(template, &["10.1.0.0/16".into(), "fd00::/64".into()]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&filled).unwrap();
        assert_eq!(value["subnet"], "10.1.0.0/16");
        assert_eq!(value["ranges"][1][0]["subnet"], "fd00::/64");
        assert_eq!(value["routes"], serde_json::json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]));
    }

    #[test]
    fn else_dots_comments_and_trim_marks_are_understood() {
        let all = ["a".to_owned(), "b".to_owned()];
        let text =
            "x {{- /* no */ -}} y{{range .PodCIDRRanges}}<{{.}}>{{else}}none{{end}}{{if .Routes}}r{{else}}-{{end}}";
        assert_eq!(fill(text, &all).unwrap(), "xy<a><b>-");
        assert_eq!(fill("{{range .PodCIDRRanges}}{{else}}none{{end}}", &[]).unwrap(), "none");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, named) in [
            ("{{.Nothing}}", ".Nothing"),
            ("{{template \"x\"}}", "template"),
            ("{{if .Routes}}", "{{end}}"),
            ("{{end}}", "{{end}}"),
            ("{{", "}}"),
            ("{{range .PodCIDR}}{{end}}", "not a list"),
        ] {
            let error = fill(text, &["a".into()]).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
        assert!(fill(&"{{if .Routes}}".repeat(100), &[]).unwrap_err().contains("in each other"));
    }
}
