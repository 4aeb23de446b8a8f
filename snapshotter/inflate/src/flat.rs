//! Where decoding writes: what matches refer to and what they become lie in one piece.

/// What a distance reaches back at most (RFC 1951, 2).
pub(crate) const WINDOW: usize = 32 << 10;

/// Behind the limit of an output there is room for whatever is begun before it.
pub(crate) const MARGIN: usize = 320;

/// What is decoded to: bytes, or wider values where some stand for bytes that are not known yet.
pub(crate) trait Symbol: Copy + Default + 'static {
    fn of(byte: u8) -> Self;
}

impl Symbol for u8 {
    #[inline(always)]
    fn of(byte: u8) -> u8 {
        byte
    }
}

impl Symbol for u16 {
    #[inline(always)]
    fn of(byte: u8) -> u16 {
        u16::from(byte)
    }
}

/// Where symbols are written, behind those that matches may refer to: all of `..at`.
pub(crate) struct Flat<S> {
    pub(crate) symbols: Vec<S>,
    pub(crate) at: usize,
    /// Nothing is begun from here on; there are [`MARGIN`] more.
    pub(crate) limit: usize,
}

impl<S: Symbol> Flat<S> {
    /// Room for `size` symbols, those that are referred to among them.
    pub(crate) fn new(size: usize) -> Flat<S> {
        Flat { symbols: vec![S::default(); size + MARGIN], at: 0, limit: size }
    }

    /// Makes room for `size` symbols.
    pub(crate) fn grow(&mut self, size: usize) {
        if self.symbols.len() < size + MARGIN {
            self.symbols.resize(size + MARGIN, S::default());
        }
        self.limit = size;
    }
}
