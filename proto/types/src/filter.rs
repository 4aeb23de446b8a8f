//! containerd's filter language: `FIELD[OP VALUE][,…]`, several filters are alternatives.
//!
//! A field is a path of names joined by `.`; a name may be quoted (`labels."a.b/c"`). `==` and `!=` compare, `~=` searches
//! by a regular expression, a bare field asks for presence. Values are bare up to a comma or blank, or quoted by `"`;
//! after `~=` the quotes may also be `|` or `/`. Escapes within quotes are those of Go's strings.

use std::borrow::Cow;

/// What a filter looks at: an object's fields by path.
pub trait Fields {
    /// The value at `path` (for example `["labels", "a.b/c"]`); none where the object has no such field.
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>>;
}

/// Parsed filters. An object matches when any alternative does; no alternatives match everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    alternatives: Vec<Vec<Selector>>,
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    #[cfg(feature = "regex")]
    Matches(regex::Regex),
}

impl Filter {
    /// Parses the alternatives.
    ///
    /// # Errors
    /// [`InvalidFilter`] with the text and the byte position of the first mistake.
    pub fn parse<S: AsRef<str>>(alternatives: &[S]) -> Result<Filter, InvalidFilter> {
        let alternatives = alternatives.iter().map(|text| selectors(text.as_ref())).collect::<Result<_, _>>()?;
        Ok(Filter { alternatives })
    }

    /// Whether `object` is selected.
    pub fn matches(&self, object: &dyn Fields) -> bool {
        self.alternatives.is_empty()
            || self.alternatives.iter().any(|selectors| selectors.iter().all(|selector| selector.matches(object)))
    }
}

impl Selector {
    fn matches(&self, object: &dyn Fields) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let value = object.field(&path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == wanted.as_str()),
            // An absent field compares and matches as the empty string.
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted.as_str(),
            #[cfg(feature = "regex")]
            Test::Matches(pattern) => pattern.is_match(&value.unwrap_or_default()),
        }
    }
}

/// Not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid filter {text:?} at byte {position}: {reason}")]
pub struct InvalidFilter {
    text: String,
    position: usize,
    reason: &'static str,
}

impl crate::HasKind for InvalidFilter {
    fn kind(&self) -> crate::ErrorKind {
        crate::ErrorKind::InvalidArgument
    }
}

fn selectors(text: &str) -> Result<Vec<Selector>, InvalidFilter> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut parser = Parser { text, at: 0 };
    parser.selectors().map_err(|(position, reason)| InvalidFilter {
        text: text.chars().take(200).collect(),
        position,
        reason,
    })
}

/// Where the mistake is, and what it is.
type Mistake = (usize, &'static str);

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn selectors(&mut self) -> Result<Vec<Selector>, Mistake> {
        let mut selectors = vec![self.selector()?];
        while let Some(c) = self.peek() {
            if c != ',' {
                return Err((self.at, "expected `,` or the end"));
            }
            self.at += 1;
            selectors.push(self.selector()?);
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, Mistake> {
        let path = self.path()?;
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        self.skip_blanks();
        let start = self.at;
        let operator = self.run(|c| matches!(c, '=' | '!' | '~')).to_owned();
        let test = match operator.as_str() {
            "==" => Test::Equal(self.value("\"")?),
            "!=" => Test::NotEqual(self.value("\"")?),
            "~=" => self.pattern()?,
            "" => return Err((start, "expected `==`, `!=` or `~=`")),
            _ => return Err((start, "the operators are `==`, `!=` and `~=`")),
        };
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<Vec<String>, Mistake> {
        let mut path = vec![self.name()?];
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.name()?);
        }
        Ok(path)
    }

    fn name(&mut self) -> Result<String, Mistake> {
        self.skip_blanks();
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let start = self.at;
        match self.run(|c| c.is_ascii_alphanumeric() || c == '_') {
            "" => Err((start, "expected a field name, bare or in `\"`")),
            name => Ok(name.to_owned()),
        }
    }

    fn value(&mut self, quotes: &str) -> Result<String, Mistake> {
        self.skip_blanks();
        match self.peek() {
            None => Err((self.at, "expected a value")),
            Some(quote) if quotes.contains(quote) => self.quoted(quote),
            Some('|' | '/') => Err((self.at, "the quotes `|` and `/` may only follow `~=`")),
            Some(',' | '.' | '=' | '!' | '~') => Err((self.at, "a value that begins so must be quoted")),
            Some(_) => self.bare(),
        }
    }

    fn bare(&mut self) -> Result<String, Mistake> {
        let start = self.at;
        match self.run(|c| c != ',' && !c.is_whitespace() && !c.is_control()) {
            "" => Err((start, "expected a value")),
            value => Ok(value.to_owned()),
        }
    }

    #[cfg(feature = "regex")]
    fn pattern(&mut self) -> Result<Test, Mistake> {
        /// Bound on a compiled expression, in bytes: filters come from outside.
        const MAX_PROGRAM: usize = 1 << 20;
        self.skip_blanks();
        let start = self.at;
        let value = self.value("\"|/")?;
        let compiled = regex::RegexBuilder::new(&value).size_limit(MAX_PROGRAM).build();
        compiled.map(Test::Matches).map_err(|_| (start, "not a regular expression, or too big a one"))
    }

    #[cfg(not(feature = "regex"))]
    fn pattern(&mut self) -> Result<Test, Mistake> {
        Err((self.at, "regular expressions are not built in"))
    }

    fn quoted(&mut self, quote: char) -> Result<String, Mistake> {
        let start = self.at;
        self.at += quote.len_utf8();
        let mut bytes = Vec::new();
        loop {
            let here = self.at;
            match self.next() {
                None | Some('\n') => return Err((start, "the quote is not closed")),
                Some('\0') => return Err((here, "a NUL")),
                Some(c) if c == quote => break,
                Some('\\') => self.escape(quote, &mut bytes).map_err(|reason| (here, reason))?,
                Some(c) => push(c, &mut bytes),
            }
        }
        String::from_utf8(bytes).map_err(|_| (start, "the escapes do not spell UTF-8"))
    }

    /// One escape sequence of Go's strings, after its backslash.
    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), &'static str> {
        let byte = match self.next() {
            Some('a') => 0x07,
            Some('b') => 0x08,
            Some('f') => 0x0c,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('v') => 0x0b,
            Some('\\') => b'\\',
            Some(c) if c == quote => {
                push(c, bytes);
                return Ok(());
            }
            Some('x') => u8::try_from(self.digits(2, 16)?).map_err(|_| "illegal escape sequence")?,
            Some('u') => return scalar(self.digits(4, 16)?, bytes),
            Some('U') => return scalar(self.digits(8, 16)?, bytes),
            Some('0'..='7') => {
                self.at -= 1;
                u8::try_from(self.digits(3, 8)?).map_err(|_| "an octal escape is at most 377")?
            }
            _ => return Err("illegal escape sequence"),
        };
        bytes.push(byte);
        Ok(())
    }

    fn digits(&mut self, count: usize, base: u32) -> Result<u32, &'static str> {
        let mut value = 0u32;
        for _ in 0..count {
            let digit = self.next().and_then(|c| c.to_digit(base)).ok_or("illegal numeric escape sequence")?;
            value = value.wrapping_mul(base).wrapping_add(digit);
        }
        Ok(value)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn run(&mut self, accept: impl Fn(char) -> bool) -> &str {
        let rest = &self.text[self.at..];
        let run = &rest[..rest.find(|c| !accept(c)).unwrap_or(rest.len())];
        self.at += run.len();
        run
    }

    fn skip_blanks(&mut self) {
        self.run(char::is_whitespace);
    }
}

fn push(c: char, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn scalar(value: u32, bytes: &mut Vec<u8>) -> Result<(), &'static str> {
    push(char::from_u32(value).ok_or("no such character")?, bytes);
    Ok(())
}
