//! Streams within a stream of bytes, decoded by the reading thread, with helpers or without.

use std::io::{self, BufRead, ErrorKind, Read};

use crate::Inflate;
use crate::piece::{Bytes, Piece};
use crate::team::Team;

/// Reads what has DEFLATE streams in it: [`Reader::inflate`] decodes one, as [`BufRead`] it gives the bytes between them.
///
/// With [helpers](Reader::help) it reads ahead. They decode from places where blocks seem to begin, and what they made is
/// taken only where the decoding thread gets to such a place: so what comes out is the same, whatever the bytes say.
pub struct Reader<R> {
    stream: R,
    inflate: Inflate,
    /// Bytes of the stream that were used.
    taken: u64,
    team: Option<Team>,
    /// What a helper made, and how much of it was handed out.
    given: Option<(Piece, usize)>,
    /// Bytes that helpers made and that were handed out.
    helped: u64,
    bytes: Option<Bytes>,
}

impl<R: BufRead> Reader<R> {
    /// Reads `stream` alone.
    pub fn new(stream: R) -> Reader<R> {
        Reader { stream, inflate: Inflate::new(), taken: 0, team: None, given: None, helped: 0, bytes: None }
    }

    /// What is read; helpers may be ahead of what came out.
    pub fn get_ref(&self) -> &R {
        &self.stream
    }

    /// Bytes of the stream that were used, between the streams in it too.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes that came out and were decoded by helpers.
    pub fn helped(&self) -> u64 {
        self.helped
    }

    /// Has `helpers` threads decode ahead from here on, each a chunk of so many bytes at a time (usually
    /// [`CHUNK`](crate::CHUNK)). They are the calling thread's, so what confines that confines them, and they end with
    /// this reader. Without helpers, or where no thread can be started, nothing changes.
    ///
    /// Memory: for each helper and three more a chunk of input and 4 MiB of output.
    pub fn help(&mut self, helpers: usize, chunk: usize) {
        if self.team.is_none() {
            self.team = Team::start(helpers, chunk, self.taken);
        }
    }

    /// Decodes into `output`: some bytes, or none at the end of a stream, which the bytes that are read next are behind.
    /// Then it is ready for another one.
    ///
    /// What is cut off is an [`ErrorKind::UnexpectedEof`], what is wrong an [`ErrorKind::InvalidData`] around an
    /// [`Error`](crate::Error).
    pub fn inflate(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if output.is_empty() {
            return Ok(0);
        }
        loop {
            let made = self.given(output);
            if made > 0 {
                return Ok(made);
            }
            let pause = self.team.is_some();
            let input = match &mut self.team {
                Some(team) => team.fill_buf(&mut self.stream)?,
                None => self.stream.fill_buf()?,
            };
            let at_end = input.is_empty();
            let invalid = |error| io::Error::new(ErrorKind::InvalidData, error);
            let step = self.inflate.step(input, output, pause).map_err(invalid)?;
            self.consume(step.taken);
            if step.paused {
                self.look();
            }
            match step.made {
                // If something was made last, this comes next.
                0 if step.ended => {
                    self.inflate.reset();
                    return Ok(0);
                }
                0 if step.paused => {}
                0 if at_end => return Err(ErrorKind::UnexpectedEof.into()),
                0 => {}
                made => return Ok(made),
            }
        }
    }

    /// Behind a block: takes what a helper made from here on, if one did and all is known that it needs.
    fn look(&mut self) {
        let Some(team) = &mut self.team else { return };
        let place = 8 * self.taken - self.inflate.kept();
        let Some(piece) = team.piece(place) else { return };
        let Some(window) = self.inflate.window() else { return team.recycle(piece) };
        let bytes = self.bytes.get_or_insert_with(Bytes::new);
        bytes.know(window);
        let end = piece.end();
        let taken = end.div_ceil(8);
        // No chunk is as large as what does not count.
        team.consume(taken.saturating_sub(self.taken) as usize);
        self.taken = taken;
        let kept = (8 * taken - end) as u32;
        let rest = if kept == 0 { (0, 0) } else { (u64::from(team.last() >> (8 - kept)), kept) };
        self.inflate.go_on(rest, |window| piece.window(bytes, window));
        self.given = Some((piece, 0));
        // No helper waits while that is handed out.
        team.ahead(&mut self.stream);
    }

    /// Hands out what a helper made; where that is all, looks for the next.
    fn given(&mut self, output: &mut [u8]) -> usize {
        while let (Some((piece, from)), Some(bytes)) = (&mut self.given, &self.bytes) {
            let made = piece.give(*from, bytes, output);
            *from += made;
            self.helped += made as u64;
            if made > 0 {
                return made;
            }
            if let (Some((piece, _)), Some(team)) = (self.given.take(), &mut self.team) {
                team.recycle(piece);
            }
            self.look();
        }
        0
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Reader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match &mut self.team {
            Some(team) => team.fill_buf(&mut self.stream),
            None => self.stream.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount as u64;
        match &mut self.team {
            Some(team) => team.consume(amount),
            None => self.stream.consume(amount),
        }
    }
}
