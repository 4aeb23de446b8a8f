//! Templates in mounts: `{{ mount 0 }}` is the mount point of the first mount before, `{{ source 0 }}` its source,
//! `{{ target 0 }}` its target, `{{ overlay 0 2 }}` the mount points from one to another, joined by colons in the
//! order asked for.

use gantry_types::Mount;

use super::{ActiveMount, Error};

/// `mount` with its source, target and options filled in from the mounts before it.
pub(crate) fn fill_in(mount: &Mount, before: &[ActiveMount]) -> Result<Mount, Error> {
    let fill = |text: &str| fill(text, before);
    Ok(Mount {
        kind: mount.kind.clone(),
        source: fill(&mount.source)?,
        target: fill(&mount.target)?,
        options: mount.options.iter().map(|option| fill(option)).collect::<Result<_, _>>()?,
    })
}

fn fill(text: &str, before: &[ActiveMount]) -> Result<String, Error> {
    let failed = |reason: String| Error::Template { text: text.chars().take(200).collect(), reason };
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((plain, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or_else(|| failed("an action is not closed".into()))?;
        // A hyphen at a brace takes the blanks beside it away.
        let (plain, action) = match action.strip_prefix("- ") {
            Some(action) => (plain.trim_end(), action),
            None => (plain, action),
        };
        let (action, after) = match action.strip_suffix(" -") {
            Some(action) => (action, after.trim_start()),
            None => (action, after),
        };
        filled.push_str(plain);
        filled.push_str(&value(action, before).map_err(failed)?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value(action: &str, before: &[ActiveMount]) -> Result<String, String> {
    let mut words = action.split_whitespace();
    let name = words.next().unwrap_or_default();
    let numbers: Option<Vec<i64>> = words.map(|word| word.parse().ok()).collect();
    match (name, numbers.as_deref()) {
        ("source", Some([index])) => Ok(at(*index, before)?.mount.source.clone()),
        ("target", Some([index])) => Ok(at(*index, before)?.mount.target.clone()),
        ("mount", Some([index])) => Ok(point(at(*index, before)?)),
        ("overlay", Some([start, end])) => range(*start, *end, before),
        _ => Err(format!("{action:?} is none of source N, target N, mount N, overlay FROM TO")),
    }
}

fn at(index: i64, before: &[ActiveMount]) -> Result<&ActiveMount, String> {
    let found = usize::try_from(index).ok().and_then(|index| before.get(index));
    found.ok_or_else(|| format!("index out of bounds: {index}, has {} active mounts", before.len()))
}

fn point(mount: &ActiveMount) -> String {
    mount.mount_point.to_string_lossy().into_owned()
}

fn range(start: i64, end: i64, before: &[ActiveMount]) -> Result<String, String> {
    let invalid = |_| format!("invalid range: {start}-{end}, has {} active mounts", before.len());
    at(start, before).and(at(end, before)).map_err(invalid)?;
    let indexes: Vec<i64> = if start > end { (end..=start).rev().collect() } else { (start..=end).collect() };
    let points: Result<Vec<String>, String> = indexes.into_iter().map(|index| at(index, before).map(point)).collect();
    Ok(points?.join(":"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn before() -> Vec<ActiveMount> {
        let active = |n: usize| ActiveMount {
            mount: Mount { source: format!("/src/{n}"), target: format!("t{n}"), ..Mount::default() },
            mounted_at: SystemTime::UNIX_EPOCH,
            mount_point: format!("/m/{n}").into(),
            data: Default::default(),
        };
        (0..3).map(active).collect()
    }

    #[test]
    fn functions_name_what_was_mounted_before() {
        for (text, expected) in [
            ("plain", "plain"),
            ("{{ mount 0 }}/upper", "/m/0/upper"),
            ("a={{source 2}},{{target 1}}", "a=/src/2,t1"),
            ("lowerdir={{ overlay 0 2 }}", "lowerdir=/m/0:/m/1:/m/2"),
            ("lowerdir={{overlay 2 1}}:/x", "lowerdir=/m/2:/m/1:/x"),
            ("a {{- mount 0 -}} b", "a/m/0b".trim()),
        ] {
            assert_eq!(fill(text, &before()).unwrap_or_else(|e| e.to_string()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_there_and_what_is_no_function_fails() {
        for text in
            ["{{ mount 3 }}", "{{ mount -1 }}", "{{ overlay 0 3 }}", "{{ overlay 5 0 }}", "{{ mount", "{{ rm 1 }}"]
        {
            assert!(fill(text, &before()).is_err(), "{text}");
        }
    }
}
