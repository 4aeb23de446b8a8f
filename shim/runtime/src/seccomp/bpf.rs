//! Classic BPF as seccomp runs it: instructions, and the code for ranges of numbers and conditions on arguments.
//! Every piece is position-independent, as all its jumps lead forward inside it.

use std::collections::BTreeMap;

/// `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    pub(super) code: u16,
    pub(super) jt: u8,
    pub(super) jf: u8,
    pub(super) k: u32,
}

/// Offset of the call's number in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
/// Offset of its architecture.
pub(super) const ARCH: u32 = 4;

const LD_ABS: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// What happens to one call: the first rule whose conditions hold, or else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) rules: Vec<Rule>,
    pub(super) otherwise: u32,
    /// Whether `otherwise` comes from a rule and not from the default.
    pub(super) settled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) result: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) operator: Operator,
    pub(super) value: u64,
    pub(super) mask: u64,
    /// Whether the architecture's arguments have 64 bits.
    pub(super) wide: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    Masked,
}

pub(super) fn load(offset: u32) -> Insn {
    Insn { code: LD_ABS, jt: 0, jf: 0, k: offset }
}

pub(super) fn ret(value: u32) -> Insn {
    Insn { code: RET, jt: 0, jf: 0, k: value }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code, jt, jf, k }
}

/// Skips `body` unless the accumulator equals `k`.
pub(super) fn unless_equal_skip(k: u32, body: Vec<Insn>) -> Vec<Insn> {
    let mut code = vec![jump(JEQ, k, 1, 0), jump(JA, body.len() as u32, 0, 0)];
    code.extend(body);
    code
}

/// Runs `high` when the accumulator is at least `k`, else `low`. Neither may fall through.
pub(super) fn branch_at_least(k: u32, low: Vec<Insn>, high: Vec<Insn>) -> Vec<Insn> {
    let mut code = match u8::try_from(low.len()) {
        Ok(over) => vec![jump(JGE, k, over, 0)],
        Err(_) => vec![jump(JGE, k, 0, 1), jump(JA, low.len() as u32, 0, 0)],
    };
    code.extend(low);
    code.extend(high);
    code
}

/// Code for all calls of one architecture, with the call's number in the accumulator. `beyond` holds for numbers above
/// the highest of `calls`.
pub(super) fn section(calls: &BTreeMap<u32, Outcome>, default: u32, beyond: u32) -> Vec<Insn> {
    let unruled = |otherwise| Outcome { rules: Vec::new(), otherwise, settled: false };
    let mut ranges: Vec<(u32, Outcome)> = vec![(0, unruled(default))];
    let mut push = |start: u32, outcome: Outcome| {
        let last = ranges.last_mut();
        match last {
            Some(last) if last.0 == start => last.1 = outcome,
            Some(last)
                if outcome.rules.is_empty() && last.1.rules.is_empty() && last.1.otherwise == outcome.otherwise => {}
            _ => ranges.push((start, outcome)),
        }
    };
    let mut next = 0;
    for (number, outcome) in calls {
        if *number > next {
            push(next, unruled(default));
        }
        push(*number, outcome.clone());
        next = number + 1;
    }
    push(next, unruled(beyond));
    search(&ranges)
}

fn search(ranges: &[(u32, Outcome)]) -> Vec<Insn> {
    match ranges {
        [] => Vec::new(),
        [(_, outcome)] => outcome_code(outcome),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch_at_least(high[0].0, search(low), search(high))
        }
    }
}

fn outcome_code(outcome: &Outcome) -> Vec<Insn> {
    let mut code = Vec::new();
    for rule in &outcome.rules {
        code.extend(rule_code(rule));
    }
    code.push(ret(outcome.otherwise));
    code
}

/// Returns the rule's result if all its conditions hold, else falls through.
fn rule_code(rule: &Rule) -> Vec<Insn> {
    let mut code = vec![ret(rule.result)];
    for condition in rule.conditions.iter().rev() {
        let mut front = condition_code(condition, code.len() as u8);
        front.extend(code);
        code = front;
    }
    code
}

/// Falls through when the condition holds, else jumps over the `rest` instructions that follow.
fn condition_code(condition: &Condition, rest: u8) -> Vec<Insn> {
    let low_offset = 16 + 8 * condition.index + if cfg!(target_endian = "big") { 4 } else { 0 };
    let high_offset = low_offset ^ 4;
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    let mut code = Vec::new();
    match condition.operator {
        Operator::Equal | Operator::Masked => {
            let masked = condition.operator == Operator::Masked;
            let tail = if masked { 3 } else { 2 };
            if condition.wide {
                code.push(load(high_offset));
                if masked {
                    code.push(jump(AND, (condition.mask >> 32) as u32, 0, 0));
                }
                code.push(jump(JEQ, high, 0, rest + tail));
            }
            code.push(load(low_offset));
            if masked {
                code.push(jump(AND, condition.mask as u32, 0, 0));
            }
            code.push(jump(JEQ, low, 0, rest));
        }
        Operator::NotEqual => {
            if condition.wide {
                code.extend([load(high_offset), jump(JEQ, high, 0, 2)]);
            }
            code.extend([load(low_offset), jump(JEQ, low, rest, 0)]);
        }
        Operator::GreaterOrEqual | Operator::Greater => {
            if condition.wide {
                code.extend([load(high_offset), jump(JGT, high, 3, 0), jump(JEQ, high, 0, rest + 2)]);
            }
            let test = if condition.operator == Operator::Greater { JGT } else { JGE };
            code.extend([load(low_offset), jump(test, low, 0, rest)]);
        }
        Operator::Less | Operator::LessOrEqual => {
            if condition.wide {
                code.extend([load(high_offset), jump(JGT, high, rest + 3, 0), jump(JEQ, high, 0, 2)]);
            }
            let test = if condition.operator == Operator::Less { JGE } else { JGT };
            code.extend([load(low_offset), jump(test, low, rest, 0)]);
        }
    }
    code
}
