//! Thrift's compact protocol, as far as a page header and a look at the schema need it.
//!
//! Borrows, allocates nothing, and every length is checked against the bytes that are there. The `parquet` crate reads
//! the footer itself; what is asked of it here first is whether its tree is shallow enough to be walked.
//! Source: thrift-compact-protocol.md; parquet.thrift of parquet-format 2.11.

/// Deepest nesting that is followed: more than any schema that is read here.
const DEEPEST: u32 = 32;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// Type of a field or element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u8);

impl Kind {
    const TRUE: Self = Self(1);
    pub(super) const LIST: Self = Self(9);
    pub(super) const STRUCT: Self = Self(12);
}

/// Reads from the front.
#[derive(Debug, Clone)]
pub(super) struct Compact<'a> {
    rest: &'a [u8],
}

impl<'a> Compact<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns how many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    fn byte(&mut self) -> Result<u8, Broken> {
        let (first, rest) = self.rest.split_first().ok_or(Broken)?;
        self.rest = rest;
        Ok(*first)
    }

    fn pass(&mut self, bytes: u64) -> Result<(), Broken> {
        let bytes = usize::try_from(bytes).map_err(|_| Broken)?;
        self.rest = self.rest.get(bytes..).ok_or(Broken)?;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Broken)
    }

    /// Reads a whole number (i16, i32, i64).
    pub(super) fn number(&mut self) -> Result<i64, Broken> {
        let coded = self.varint()?;
        Ok((coded >> 1) as i64 ^ -((coded & 1) as i64))
    }

    /// Begins the next field of a struct; `None` at its end. `last` is the number of the field before, 0 at first.
    pub(super) fn field(&mut self, last: &mut i64) -> Result<Option<(i64, Kind)>, Broken> {
        let head = self.byte()?;
        if head & 0x0f == 0 {
            return Ok(None);
        }
        *last = match head >> 4 {
            0 => self.number()?,
            more => last.checked_add(i64::from(more)).ok_or(Broken)?,
        };
        Ok(Some((*last, Kind(head & 0x0f))))
    }

    /// Begins a list: its elements' type and number, which is at most the number of bytes left.
    pub(super) fn list(&mut self) -> Result<(Kind, u64), Broken> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        if count > self.left() as u64 { Err(Broken) } else { Ok((Kind(head & 0x0f), count)) }
    }

    /// Reads a truth value of a field, which is in its type.
    pub(super) fn truth(kind: Kind) -> bool {
        kind == Kind::TRUE
    }

    /// Passes over a field's value.
    pub(super) fn skip(&mut self, kind: Kind) -> Result<(), Broken> {
        self.skip_below(kind, DEEPEST)
    }

    fn skip_below(&mut self, kind: Kind, depth: u32) -> Result<(), Broken> {
        let depth = depth.checked_sub(1).ok_or(Broken)?;
        match kind.0 {
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            8 => {
                let bytes = self.varint()?;
                self.pass(bytes)
            }
            9 | 10 => {
                let (element, count) = self.list()?;
                // A truth value has its byte to itself inside a list.
                let element = if matches!(element.0, 1 | 2) { Kind(3) } else { element };
                (0..count).try_for_each(|_| self.skip_below(element, depth))
            }
            12 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip_below(kind, depth)?;
                }
                Ok(())
            }
            // Maps are in no struct of Parquet.
            _ => Err(Broken),
        }
    }
}

/// Checks that the schema in a footer (`FileMetaData`) is no deeper than [`DEEPEST`]: the `parquet` crate walks it by
/// recursion, and a stack that overflows ends the process.
pub(super) fn check_depth(footer: &[u8]) -> Result<(), Broken> {
    let mut compact = Compact::new(footer);
    let mut last = 0;
    while let Some((number, kind)) = compact.field(&mut last)? {
        if number != 2 || kind != Kind::LIST {
            compact.skip(kind)?;
            continue;
        }
        let (element, count) = compact.list()?;
        if element != Kind::STRUCT {
            return Err(Broken);
        }
        // Children that each open node still waits for.
        let mut open: Vec<u64> = Vec::new();
        for _ in 0..count {
            while open.last() == Some(&0) {
                open.pop();
            }
            if let Some(waiting) = open.last_mut() {
                *waiting -= 1;
            }
            let children = children(&mut compact)?;
            if children > 0 {
                open.push(children);
            }
            if open.len() > DEEPEST as usize {
                return Err(Broken);
            }
        }
    }
    Ok(())
}

/// Reads a `SchemaElement`'s number of children.
fn children(compact: &mut Compact<'_>) -> Result<u64, Broken> {
    let (mut last, mut children) = (0, 0);
    while let Some((number, kind)) = compact.field(&mut last)? {
        if number == 5 && matches!(kind.0, 4..=6) {
            children = u64::try_from(compact.number()?).map_err(|_| Broken)?;
        } else {
            compact.skip(kind)?;
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer of nodes that have one child each.
    fn chain(depth: usize) -> Vec<u8> {
        let mut footer = vec![0x29, 0xfc];
        let mut count = depth as u64;
        while count > 0x7f {
            footer.push((count & 0x7f) as u8 | 0x80);
            count >>= 7;
        }
        footer.push(count as u8);
        for _ in 0..depth {
            // Field 5, i32, 1.
            footer.extend([0x55, 2, 0]);
        }
        footer.push(0);
        footer
    }

    #[test]
    fn deep_schemas_are_refused() {
        assert_eq!(check_depth(&chain(20)), Ok(()));
        assert_eq!(check_depth(&chain(33)), Err(Broken));
        assert_eq!(check_depth(&chain(1_000_000)), Err(Broken));
    }

    #[test]
    fn lists_are_no_longer_than_what_is_left() {
        // Field 2, a list of 2^35 structs.
        assert_eq!(check_depth(&[0x29, 0xfc, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0]), Err(Broken));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_end(bytes: Vec<u8>) {
            let _ = check_depth(&bytes);
        }
    }
}
