//! Rules of the device controller: what every container may use, and the rules' normal form.

use crate::error::{Error, Result};
use crate::spec::DeviceRule;

/// Kind of device of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    All,
    Char,
    Block,
}

/// A rule in normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    pub(crate) kind: Kind,
    /// `None` is any.
    pub(crate) major: Option<u32>,
    /// `None` is any.
    pub(crate) minor: Option<u32>,
    pub(crate) access: Access,
}

/// What may be done: read, write, mknod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) make: bool,
}

const ALL: Access = Access { read: true, write: true, make: true };
const MAKE: Access = Access { read: false, write: false, make: true };

/// The configuration's rules, and after them what every container needs: making nodes, the standard devices, ptys.
pub(crate) fn rules(configured: &[DeviceRule]) -> Result<Vec<Rule>> {
    let mut rules = configured.iter().map(parse).collect::<Result<Vec<_>>>()?;
    if !rules.first().is_some_and(Rule::is_total) {
        // Nothing is allowed but what is named.
        rules.insert(0, Rule { allow: false, kind: Kind::All, major: None, minor: None, access: ALL });
    }
    let char = |major, minor, access| Rule { allow: true, kind: Kind::Char, major, minor, access };
    let defaults = [
        char(None, None, MAKE),
        Rule { kind: Kind::Block, ..char(None, None, MAKE) },
        char(Some(1), Some(3), ALL),
        char(Some(1), Some(8), ALL),
        char(Some(1), Some(7), ALL),
        char(Some(5), Some(0), ALL),
        char(Some(1), Some(5), ALL),
        char(Some(1), Some(9), ALL),
        char(Some(136), None, ALL),
        char(Some(5), Some(2), ALL),
    ];
    for rule in defaults {
        if !settled(&rules, &rule) {
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// Whether a rule changes nothing: the same one is there, and nothing was denied after it.
fn settled(rules: &[Rule], rule: &Rule) -> bool {
    match rules.iter().rposition(|known| known == rule) {
        Some(at) => rules[at..].iter().all(|later| later.allow),
        None => false,
    }
}

/// Reads a configured rule.
pub(crate) fn parse(rule: &DeviceRule) -> Result<Rule> {
    let kind = match rule.kind.as_str() {
        "" | "a" => Kind::All,
        "c" | "u" => Kind::Char,
        "b" => Kind::Block,
        other => return Err(Error::invalid("linux.resources.devices", format!("{other:?} is no type of device"))),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| Error::invalid("linux.resources.devices", format!("{value} is no device number"))),
    };
    if rule.access.chars().any(|c| !"rwm".contains(c)) {
        return Err(Error::invalid("linux.resources.devices", format!("access {:?}", rule.access)));
    }
    let has = |c| rule.access.is_empty() || rule.access.contains(c);
    let access = Access { read: has('r'), write: has('w'), make: has('m') };
    let (major, minor) = (number(rule.major)?, number(rule.minor)?);
    if kind == Kind::All && (major.is_some() || minor.is_some()) {
        return Err(Error::invalid("linux.resources.devices", "type \"a\" cannot have device numbers"));
    }
    Ok(Rule { allow: rule.allow, kind, major, minor, access })
}

impl Rule {
    /// Whether it covers every device and every access.
    pub(crate) fn is_total(&self) -> bool {
        self.kind == Kind::All && self.access == ALL && self.major.is_none() && self.minor.is_none()
    }

    /// As the v1 controller's files take it; two lines for a partial rule about all devices.
    pub(crate) fn lines(&self) -> Vec<String> {
        let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
        let mut access = String::new();
        for (has, letter) in [(self.access.read, 'r'), (self.access.write, 'w'), (self.access.make, 'm')] {
            if has {
                access.push(letter);
            }
        }
        let line = |kind: &str| format!("{kind} {}:{} {access}", number(self.major), number(self.minor));
        match self.kind {
            Kind::All if self.is_total() => vec!["a".to_owned()],
            Kind::All => vec![line("c"), line("b")],
            Kind::Char => vec![line("c")],
            Kind::Block => vec![line("b")],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, major: Option<i64>, minor: Option<i64>, access: &str) -> DeviceRule {
        DeviceRule { allow, kind: kind.into(), major, minor, access: access.into() }
    }

    #[test]
    fn default_devices_follow_unless_they_are_allowed_already() {
        let all = rules(&[rule(false, "", None, None, "rwm")]).unwrap();
        assert_eq!(all.len(), 11);
        let with_null =
            rules(&[rule(false, "a", None, None, "rwm"), rule(true, "c", Some(1), Some(3), "rwm")]).unwrap();
        assert_eq!(with_null.len(), 11, "null is not allowed twice");
    }

    #[test]
    fn rules_read_as_the_kernel_takes_them() {
        assert_eq!(parse(&rule(false, "", None, None, "rwm")).unwrap().lines(), ["a"]);
        assert_eq!(parse(&rule(true, "c", Some(1), Some(-1), "rm")).unwrap().lines(), ["c 1:* rm"]);
        assert_eq!(parse(&rule(true, "a", None, None, "m")).unwrap().lines(), ["c *:* m", "b *:* m"]);
        assert!(parse(&rule(true, "x", None, None, "m")).is_err());
        assert!(parse(&rule(true, "c", None, None, "q")).is_err());
    }
}
