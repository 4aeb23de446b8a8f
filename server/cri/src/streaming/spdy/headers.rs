//! Header blocks of SPDY/3.1: names and values with lengths, in one zlib stream for each direction of a connection,
//! which begins with a dictionary that the specification gives (section 2.6.10.1).

use std::collections::BTreeMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Largest block that is read, decompressed.
const MAX_BLOCK: usize = 64 << 10;
/// Most headers of a stream.
const MAX_HEADERS: usize = 100;

/// The dictionary's words; each is preceded by its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// What follows the words.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::new();
    for word in WORDS.split_whitespace() {
        let word = word.replace('_', " ");
        dictionary.extend((word.len() as u32).to_be_bytes());
        dictionary.extend(word.bytes());
    }
    dictionary.extend(REST.bytes());
    dictionary
}

/// Headers of a stream, names in small letters.
pub(super) type Headers = BTreeMap<String, String>;

/// Reads the blocks of one direction, in their order.
#[derive(Debug)]
pub(super) struct Reader(Decompress);

impl Reader {
    pub(super) fn new() -> Reader {
        Reader(Decompress::new(true))
    }

    /// Understands the next block.
    ///
    /// # Errors
    /// What is wrong with it; the connection cannot go on, since later blocks build on it.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, String> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        let mut buffer = vec![0; 8 << 10];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let outcome = self.0.decompress(block, &mut buffer, FlushDecompress::Sync);
            let (read, written) = ((self.0.total_in() - read) as usize, (self.0.total_out() - written) as usize);
            block = &block[read..];
            plain.extend(&buffer[..written]);
            if plain.len() > MAX_BLOCK {
                return Err(format!("headers of more than {MAX_BLOCK} bytes"));
            }
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| "headers with another dictionary".to_owned())?;
                }
                Err(error) => return Err(format!("headers cannot be decompressed: {error}")),
                Ok(Status::StreamEnd) => return Err("headers after the end of their compression".into()),
                Ok(_) if block.is_empty() && written < buffer.len() => return Ok(plain),
                Ok(_) if read == 0 && written == 0 => return Err("headers are cut off".into()),
                Ok(_) => {}
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, String> {
    let count = number(&mut block)? as usize;
    if count > MAX_HEADERS {
        return Err(format!("{count} headers, {MAX_HEADERS} is the limit"));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        headers.insert(name, text(&mut block)?);
    }
    Ok(headers)
}

fn number(block: &mut &[u8]) -> Result<u32, String> {
    let (start, rest) = block.split_first_chunk::<4>().ok_or("headers are too short")?;
    *block = rest;
    Ok(u32::from_be_bytes(*start))
}

fn text(block: &mut &[u8]) -> Result<String, String> {
    let length = number(block)? as usize;
    let bytes = block.get(..length).ok_or("a header is longer than its block")?;
    *block = &block[length..];
    String::from_utf8(bytes.to_vec()).map_err(|_| "a header is no text".to_owned())
}

/// Writes the blocks of one direction, in their order.
#[derive(Debug)]
pub(super) struct Writer(Compress);

impl Writer {
    pub(super) fn new() -> Result<Writer, String> {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&dictionary()).map_err(|e| e.to_string())?;
        Ok(Writer(compress))
    }

    /// The next block.
    pub(super) fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, String> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.bytes());
        }
        // Stored blocks and a sync marker add little; with room to spare one call does it all.
        let mut block = Vec::with_capacity(plain.len() + 256);
        self.0.compress_vec(&plain, &mut block, FlushCompress::Sync).map_err(|e| e.to_string())?;
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_specifications() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        // Checksum of the dictionary as zlib streams of SPDY/3 name it.
        let sums = dictionary.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!(sums.1 << 16 | sums.0, 0xe3c6_a7c2);
    }

    proptest! {
        #[test]
        fn blocks_are_read_as_they_were_written(all in proptest::collection::vec(
            proptest::collection::btree_map("[a-z-]{1,20}", ".{0,60}", 0..8), 1..6)) {
            let (mut writer, mut reader) = (Writer::new().unwrap(), Reader::new());
            for headers in all {
                let block = writer.write(&headers).unwrap();
                prop_assert_eq!(reader.read(&block).unwrap(), headers);
            }
        }

        #[test]
        fn no_block_makes_the_reader_panic(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..4)) {
            let mut reader = Reader::new();
            for block in &blocks {
                let _ = reader.read(block);
                let _ = parse(block);
            }
            let (mut writer, mut reader) = (Writer::new().unwrap(), Reader::new());
            let mut block = writer.write(&Headers::from([("streamtype".into(), "data".into())])).unwrap();
            for (at, byte) in blocks.concat().into_iter().enumerate() {
                let length = block.len();
                block[at * 7 % length] ^= byte;
            }
            let _ = reader.read(&block);
        }
    }

    #[test]
    fn a_block_that_swells_is_refused() {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&dictionary()).unwrap();
        let mut block = Vec::with_capacity(1 << 20);
        compress.compress_vec(&vec![0; 60 << 20], &mut block, FlushCompress::Sync).unwrap();
        block.truncate(60_000);
        assert!(Reader::new().read(&block).unwrap_err().contains("more than 65536"));
    }
}
