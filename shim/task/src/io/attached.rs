//! While the process runs: what moves its bytes, and how that ends.

use std::os::fd::OwnedFd;

use super::Movers;
use crate::copy::{Copiers, Sink};
use crate::logger::Logger;
use crate::{Error, console};

/// The streams of a process that runs.
#[derive(Debug, Default)]
pub struct Attached {
    pub(super) inputs: Vec<u32>,
    pub(super) outputs: Vec<u32>,
    pub(super) console: Option<OwnedFd>,
    pub(super) logger: Option<Logger>,
    pub(super) log: Option<u32>,
    pub(super) tees: Vec<u32>,
    /// Where those who attach write to.
    pub(super) open_input: Option<OwnedFd>,
}

impl Attached {
    /// The client sends nothing more: stdin ends once what is under way was delivered.
    pub fn close_stdin(&mut self, copiers: &mut Copiers) {
        self.open_input = None;
        for &number in &self.inputs {
            copiers.close_when_empty(number);
        }
    }

    /// Sets the terminal's size, where there is one.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        self.console.as_ref().map_or(Ok(()), |terminal| console::resize(terminal, width, height))
    }

    /// The log that its outputs go to.
    pub fn log(&self) -> Option<u32> {
        self.log
    }

    /// Feeds its stdin from `source`, which does not block; gives the copier's number. None where its stdin is not for
    /// those who attach, or has ended.
    ///
    /// # Errors
    /// [`Error::System`] when descriptors run out.
    pub fn feed(&mut self, source: OwnedFd, copiers: &mut Copiers) -> Result<Option<u32>, Error> {
        let Some(input) = &self.open_input else { return Ok(None) };
        let input = input.try_clone().map_err(|error| Error::system("dup", error))?;
        let number = copiers.add(source, Some(input), Sink::Input);
        self.inputs.push(number);
        Ok(Some(number))
    }

    /// The process has ended: nobody reads its stdin. Outputs run on until all who hold them have closed them.
    pub fn process_ended(&mut self, copiers: &mut Copiers) {
        for number in self.inputs.drain(..) {
            copiers.drop(number);
        }
        self.open_input = None;
        self.console = None;
    }

    /// Delivers what is there and closes everything. The logger, if any, is returned: it has seen the end of its input.
    pub fn finish(&mut self, movers: &mut Movers) -> Option<Logger> {
        self.process_ended(&mut movers.copiers);
        self.outputs.drain(..).for_each(|number| movers.copiers.finish(number));
        self.tees.drain(..).for_each(|number| movers.tees.finish(number));
        if let Some(log) = self.log.take() {
            movers.tees.close(log);
        }
        self.logger.take()
    }

    /// The logger, if there is one.
    pub fn logger_pid(&self) -> Option<i32> {
        self.logger.as_ref().map(|logger| logger.pid)
    }
}
