//! D-Bus values as bytes (D-Bus specification, "Marshaling"), little-endian, as far as systemd's calls need them.

/// The next multiple of `to`.
pub(super) fn pad(length: usize, to: usize) -> usize {
    length.div_ceil(to) * to
}

/// A value in a variant.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Path(&'a str),
    Signature(&'a str),
    Bool(bool),
    Number(u64),
    Pids(Vec<u32>),
    Bytes(Vec<u8>),
    /// `a(ss)`.
    Pairs(Vec<(String, String)>),
    /// `as`.
    Texts(Vec<&'a str>),
}

impl Value<'_> {
    fn signature(&self) -> &'static str {
        match self {
            Value::Text(_) => "s",
            Value::Path(_) => "o",
            Value::Signature(_) => "g",
            Value::Bool(_) => "b",
            Value::Number(_) => "t",
            Value::Pids(_) => "au",
            Value::Bytes(_) => "ay",
            Value::Pairs(_) => "a(ss)",
            Value::Texts(_) => "as",
        }
    }
}

/// Bytes being written; alignment counts from the first.
#[derive(Default)]
pub(super) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(super) fn finish(self) -> Vec<u8> {
        self.out
    }

    pub(super) fn align(&mut self, to: usize) {
        self.out.resize(pad(self.out.len(), to), 0);
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.out.push(byte);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.align(4);
        self.bytes(&number.to_le_bytes());
    }

    pub(super) fn string(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.bytes(text.as_bytes());
        self.byte(0);
    }

    fn signature(&mut self, text: &str) {
        self.byte(text.len() as u8);
        self.bytes(text.as_bytes());
        self.byte(0);
    }

    /// An array whose elements are aligned to `to`; the length does not count the padding before the first.
    pub(super) fn array(&mut self, to: usize, elements: impl FnOnce(&mut Writer)) {
        self.u32(0);
        let at = self.out.len() - 4;
        self.align(to);
        let start = self.out.len();
        elements(self);
        let length = (self.out.len() - start) as u32;
        self.out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    pub(super) fn variant(&mut self, value: &Value<'_>) {
        self.signature(value.signature());
        match value {
            Value::Text(text) | Value::Path(text) => self.string(text),
            Value::Signature(text) => self.signature(text),
            Value::Bool(on) => self.u32(u32::from(*on)),
            Value::Number(number) => {
                self.align(8);
                self.bytes(&number.to_le_bytes());
            }
            Value::Pids(pids) => self.array(4, |out| pids.iter().for_each(|pid| out.u32(*pid))),
            Value::Bytes(bytes) => self.array(1, |out| out.bytes(bytes)),
            Value::Texts(texts) => self.array(4, |out| texts.iter().for_each(|text| out.string(text))),
            Value::Pairs(pairs) => self.array(8, |out| {
                for (first, second) in pairs {
                    out.align(8);
                    out.string(first);
                    out.string(second);
                }
            }),
        }
    }

    /// `a(sv)`.
    pub(super) fn properties(&mut self, properties: &[(&str, Value<'_>)]) {
        self.array(8, |out| {
            for (name, value) in properties {
                out.align(8);
                out.string(name);
                out.variant(value);
            }
        });
    }
}

/// Bytes being read; `None` is their end or nonsense.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn align(&mut self, to: usize) -> Option<()> {
        self.at = pad(self.at, to);
        (self.at <= self.bytes.len()).then_some(())
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.align(4)?;
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = std::str::from_utf8(self.take(length)?).ok()?.to_owned();
        (self.byte()? == 0).then_some(text)
    }

    pub(super) fn string(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    pub(super) fn signature(&mut self) -> Option<String> {
        let length = self.byte()? as usize;
        self.text(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(texts: Vec<String>, number: u32) {
            let texts = texts.iter().map(|text| text.replace('\0', "")).collect::<Vec<_>>();
            let mut out = Writer::default();
            for text in &texts {
                out.string(text);
                out.u32(number);
            }
            let bytes = out.finish();
            let mut reader = Reader::new(&bytes);
            for text in &texts {
                prop_assert_eq!(reader.string(), Some(text.clone()));
                prop_assert_eq!(reader.u32(), Some(number));
            }
            prop_assert!(reader.is_empty());
        }
    }
}
