//! Protobuf's wire format over borrowed bytes: what the generated types would copy into owned strings is
//! lent instead, so that a message passes through an edge without an allocation.
//!
//! Source: the protobuf encoding guide ("Encoding"). Groups (wire types 3 and 4) are refused: proto3
//! does not write them.

/// Bytes that are not a protobuf message of the expected kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireError {
    /// A field ends after its message does.
    Truncated,
    /// A varint of more than ten bytes, or of more than 64 bits.
    VarintTooLong,
    /// Field number 0, or a wire type that proto3 does not use.
    BadTag,
    /// A known field arrived with the wire type of another kind of field.
    WrongType,
    /// A string that is not UTF-8.
    NotUtf8,
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Truncated => "message ends in the middle of a field",
            Self::VarintTooLong => "varint longer than 64 bits",
            Self::BadTag => "field tag that proto3 does not use",
            Self::WrongType => "field with the wire type of another kind",
            Self::NotUtf8 => "string field that is not UTF-8",
        })
    }
}

impl std::error::Error for WireError {}

/// One field's value as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

impl<'a> Value<'a> {
    pub(crate) fn varint(self) -> Result<u64, WireError> {
        if let Self::Varint(value) = self { Ok(value) } else { Err(WireError::WrongType) }
    }

    pub(crate) fn fixed64(self) -> Result<u64, WireError> {
        if let Self::Fixed64(value) = self { Ok(value) } else { Err(WireError::WrongType) }
    }

    pub(crate) fn bytes(self) -> Result<&'a [u8], WireError> {
        if let Self::Bytes(value) = self { Ok(value) } else { Err(WireError::WrongType) }
    }

    pub(crate) fn str(self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::NotUtf8)
    }
}

/// The fields of one message, in the order in which they stand on the wire.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads `message`, which holds exactly one message.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// Takes the next field: its number and value, or `None` at the end.
    ///
    /// # Errors
    /// [`WireError`]; the message is then of no further use.
    #[inline]
    pub fn next_field(&mut self) -> Result<Option<(u32, Value<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::BadTag)?;
        if number == 0 || number > 0x1fff_ffff {
            return Err(WireError::BadTag);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| WireError::Truncated)?;
                let (bytes, rest) =
                    self.rest.split_at_checked(length).ok_or(WireError::Truncated)?;
                self.rest = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(WireError::BadTag),
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        if let [first @ 0..=0x7f, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u64::from(*first));
        }
        let mut value = 0u64;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            if at == 9 && *byte > 1 {
                return Err(WireError::VarintTooLong);
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 { WireError::Truncated } else { WireError::VarintTooLong })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }
}

/// Where the fields of a message go: counted by [`Measure`], written by [`Writer`].
pub trait Sink {
    /// A raw varint, without a tag.
    fn varint(&mut self, value: u64);
    /// Raw bytes, without a tag or length.
    fn raw(&mut self, bytes: &[u8]);
}

/// Counts what a message will take, in bytes.
#[derive(Debug, Default)]
pub struct Measure(pub usize);

impl Sink for Measure {
    #[inline]
    fn varint(&mut self, value: u64) {
        self.0 += varint_bytes(value);
    }

    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// Writes a message at the end of a buffer.
#[derive(Debug)]
pub struct Writer<'o>(pub &'o mut Vec<u8>);

impl Sink for Writer<'_> {
    #[inline]
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// Bytes that `value` takes as a varint: 1 to 10.
#[inline]
#[must_use]
pub fn varint_bytes(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Something with protobuf fields.
pub trait Message {
    /// Puts every field that is not at its default, in the order of the numbers.
    fn put<S: Sink>(&self, sink: &mut S);

    /// Length of the encoding, in bytes.
    fn encoded_bytes(&self) -> usize {
        let mut measure = Measure::default();
        self.put(&mut measure);
        measure.0
    }
}

const LENGTH_DELIMITED: u64 = 2;

/// Writes `message` as field `number` of a message that stands at the end of `out`.
pub fn write_field<M: Message>(out: &mut Vec<u8>, number: u32, message: &M) {
    let bytes = message.encoded_bytes();
    let mut writer = Writer(out);
    writer.varint(u64::from(number) << 3 | LENGTH_DELIMITED);
    writer.varint(bytes as u64);
    message.put(&mut writer);
}

/// Writes `message` as field `inner` of a message that is itself field `outer`.
pub fn write_field_in_field<M: Message>(out: &mut Vec<u8>, outer: u32, inner: u32, message: &M) {
    let bytes = message.encoded_bytes();
    let inner_tag = u64::from(inner) << 3 | LENGTH_DELIMITED;
    let mut writer = Writer(out);
    writer.varint(u64::from(outer) << 3 | LENGTH_DELIMITED);
    writer.varint((varint_bytes(inner_tag) + varint_bytes(bytes as u64) + bytes) as u64);
    writer.varint(inner_tag);
    writer.varint(bytes as u64);
    message.put(&mut writer);
}

/// A packed `repeated uint64`, checked and kept as it stands on the wire: an edge passes it on as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packed<'a>(pub &'a [u8]);

/// How each kind of field is read and put; named in the tables of [`crate::view`].
pub(crate) mod kind {
    use super::{Fields, LENGTH_DELIMITED, Message, Packed, Sink, Value, WireError};

    fn tag<S: Sink>(sink: &mut S, number: u32, wire_type: u64) {
        sink.varint(u64::from(number) << 3 | wire_type);
    }

    macro_rules! varint_kind {
        ($name:ident, $type:ty) => {
            pub(crate) mod $name {
                use super::{Sink, Value, WireError};

                pub(crate) fn read(value: Value<'_>, into: &mut $type) -> Result<(), WireError> {
                    *into = value.varint()? as $type;
                    Ok(())
                }

                pub(crate) fn put<S: Sink>(sink: &mut S, number: u32, value: &$type) {
                    if *value != 0 {
                        super::tag(sink, number, 0);
                        sink.varint(*value as u64);
                    }
                }
            }
        };
    }
    varint_kind!(uint32, u32);
    varint_kind!(uint64, u64);
    varint_kind!(int64, i64);
    varint_kind!(enumeration, i32);

    pub(crate) mod boolean {
        use super::{Sink, Value, WireError};

        pub(crate) fn read(value: Value<'_>, into: &mut bool) -> Result<(), WireError> {
            *into = value.varint()? != 0;
            Ok(())
        }

        pub(crate) fn put<S: Sink>(sink: &mut S, number: u32, value: &bool) {
            if *value {
                super::tag(sink, number, 0);
                sink.varint(1);
            }
        }
    }

    pub(crate) mod optional_uint64 {
        use super::{Sink, Value, WireError};

        pub(crate) fn read(value: Value<'_>, into: &mut Option<u64>) -> Result<(), WireError> {
            *into = Some(value.varint()?);
            Ok(())
        }

        pub(crate) fn put<S: Sink>(sink: &mut S, number: u32, value: &Option<u64>) {
            if let Some(value) = value {
                super::tag(sink, number, 0);
                sink.varint(*value);
            }
        }
    }

    pub(crate) mod fixed64 {
        use super::{Sink, Value, WireError};

        pub(crate) fn read(value: Value<'_>, into: &mut u64) -> Result<(), WireError> {
            *into = value.fixed64()?;
            Ok(())
        }

        pub(crate) fn put<S: Sink>(sink: &mut S, number: u32, value: &u64) {
            if *value != 0 {
                super::tag(sink, number, 1);
                sink.raw(&value.to_le_bytes());
            }
        }
    }

    pub(crate) mod string {
        use super::{Sink, Value, WireError};

        pub(crate) fn read<'a>(value: Value<'a>, into: &mut &'a str) -> Result<(), WireError> {
            *into = value.str()?;
            Ok(())
        }

        pub(crate) fn put<S: Sink>(sink: &mut S, number: u32, value: &&str) {
            super::bytes::put(sink, number, &value.as_bytes());
        }
    }

    pub(crate) mod bytes {
        use super::{LENGTH_DELIMITED, Sink, Value, WireError};

        pub(crate) fn read<'a>(value: Value<'a>, into: &mut &'a [u8]) -> Result<(), WireError> {
            *into = value.bytes()?;
            Ok(())
        }

        pub(crate) fn put<S: Sink>(sink: &mut S, number: u32, value: &&[u8]) {
            if !value.is_empty() {
                super::tag(sink, number, LENGTH_DELIMITED);
                sink.varint(value.len() as u64);
                sink.raw(value);
            }
        }
    }

    pub(crate) mod packed {
        use super::{Fields, Packed, Sink, Value, WireError};

        pub(crate) fn read<'a>(value: Value<'a>, into: &mut Packed<'a>) -> Result<(), WireError> {
            let bytes = value.bytes()?;
            let mut varints = Fields::new(bytes);
            while !varints.rest.is_empty() {
                varints.varint()?;
            }
            *into = Packed(bytes);
            Ok(())
        }

        pub(crate) fn put<S: Sink>(sink: &mut S, number: u32, value: &Packed<'_>) {
            super::bytes::put(sink, number, &value.0);
        }
    }

    pub(crate) fn put_message<S: Sink, M: Message>(sink: &mut S, number: u32, value: &Option<M>) {
        if let Some(message) = value {
            tag(sink, number, LENGTH_DELIMITED);
            sink.varint(message.encoded_bytes() as u64);
            message.put(sink);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_takes_the_bytes_that_are_measured_for_it() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                Writer(&mut out).varint(value);
                assert_eq!(out.len(), varint_bytes(value), "{value}");
                assert_eq!(Fields::new(&out).varint(), Ok(value));
            }
        }
    }

    #[test]
    fn a_packed_field_holds_whole_varints() {
        let read = |bytes| kind::packed::read(Value::Bytes(bytes), &mut Packed::default());
        assert_eq!(read(&[1, 0x80, 1]), Ok(()));
        assert_eq!(read(&[1, 0x80]), Err(WireError::Truncated));
    }

    #[test]
    fn overlong_varints_and_unused_tags_are_refused() {
        assert_eq!(Fields::new(&[0x80; 11]).varint(), Err(WireError::VarintTooLong));
        assert_eq!(
            Fields::new(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2]).varint(),
            Err(WireError::VarintTooLong)
        );
        assert_eq!(Fields::new(&[0x80]).varint(), Err(WireError::Truncated));
        for group in [0x0b, 0x0c, 0x0e, 0x02, 0x00] {
            assert_eq!(Fields::new(&[group, 0]).next_field(), Err(WireError::BadTag), "{group}");
        }
    }
}
