//! Reads a tree of values into a specification and goes on after an error, so that a person gets all of them at once.
//!
//! One walk over the tree by the table of fields writes the message as bytes, which prost reads: so this code exists once, and not
//! once for each message.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Map, Value};

use super::MAX_ERRORS;
use super::error::{DocumentErrors, DocumentProblem, cut};
use super::table::{Field, Kind, Message};

/// There are more than [`MAX_ERRORS`] errors; nothing more is read.
struct TooMany;

/// Reads a specification, which is the message `T` of the table as `message`. What is wrong is recorded and left out.
pub(super) fn read_spec<T: prost::Message + Default>(value: &Value, message: &Message, errors: &mut DocumentErrors) -> T {
    let mut reader = Reader { errors, path: String::new() };
    let mut bytes = Vec::new();
    let Ok(()) = reader.root(value, message, &mut bytes) else {
        errors.push("", DocumentProblem::TooManyErrors);
        return T::default();
    };
    // The bytes are valid by construction: each field has its number, its wire type and its length from the same table.
    T::decode(bytes.as_slice()).unwrap_or_default()
}

struct Reader<'a> {
    errors: &'a mut DocumentErrors,
    /// Where the walk is: `levels.gpuMemory`.
    path: String,
}

impl Reader<'_> {
    fn root(&mut self, value: &Value, message: &Message, out: &mut Vec<u8>) -> Result<(), TooMany> {
        match value {
            Value::Object(object) => self.object(message, object, out),
            other => self.note_at("spec", DocumentProblem::wrong_type(other, "an object")),
        }
    }

    fn object(&mut self, message: &Message, object: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), TooMany> {
        for (key, value) in object {
            let parent = self.path.len();
            if parent > 0 {
                self.path.push('.');
            }
            self.path.push_str(&cut(key));
            match message.fields.iter().find(|field| field.name == key) {
                Some(field) => self.field(field, value, out)?,
                None => self.note(DocumentProblem::UnknownField { allowed: names(message) })?,
            }
            self.path.truncate(parent);
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, value: &Value, out: &mut Vec<u8>) -> Result<(), TooMany> {
        match value {
            // It would silently mean the default.
            Value::Null => self.note(DocumentProblem::Null),
            Value::Array(list) if field.list => {
                for (index, element) in list.iter().enumerate() {
                    self.element(field, index, element, out)?;
                }
                Ok(())
            }
            other if field.list => self.note(DocumentProblem::wrong_type(other, "a list")),
            other => self.single(field.kind, other).map(|one| put(field, one, out)),
        }
    }

    /// An element that cannot be read becomes an empty one, so that the others keep their places.
    fn element(&mut self, field: &Field, index: usize, value: &Value, out: &mut Vec<u8>) -> Result<(), TooMany> {
        let parent = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        let read = match value {
            Value::Null => self.note(DocumentProblem::Null).map(|()| None)?,
            other => self.single(field.kind, other)?,
        };
        put(field, Some(read.unwrap_or_else(|| empty(field.kind))), out);
        self.path.truncate(parent);
        Ok(())
    }

    /// One value of a kind; none when it is no such value, which is noted.
    fn single(&mut self, kind: Kind, value: &Value) -> Result<Option<Encoded>, TooMany> {
        let (read, expected) = match (kind, value) {
            (Kind::Message(message), Value::Object(object)) => {
                let mut inner = Vec::new();
                self.object(message, object, &mut inner)?;
                return Ok(Some(Encoded::Bytes(inner)));
            }
            (Kind::Enum(values), Value::String(name)) => {
                let Some((_, number)) = values.iter().find(|(known, _)| known == name) else {
                    self.note(DocumentProblem::not_one_of(value, values.iter().map(|(known, _)| *known)))?;
                    return Ok(None);
                };
                return Ok(Some(Encoded::Varint(u64::from(number.unsigned_abs()))));
            }
            (Kind::Message(_), _) => (None, "an object"),
            (Kind::Text, Value::String(text)) => (Some(Encoded::Bytes(text.clone().into_bytes())), "a text"),
            (Kind::Text | Kind::Enum(_), _) => (None, "a text"),
            (Kind::Bool, _) => (value.as_bool().map(|on| Encoded::Varint(on.into())), "true or false"),
            (Kind::Double, _) => (value.as_f64().map(Encoded::Double), "a number"),
            (Kind::Uint32, _) => {
                let number = value.as_u64().filter(|number| u32::try_from(*number).is_ok());
                (number.map(Encoded::Varint), "a whole number in 0..=4294967295")
            }
            (Kind::Uint64, _) => (value.as_u64().map(Encoded::Varint), "a whole number in 0..=18446744073709551615"),
        };
        if read.is_none() {
            self.note(DocumentProblem::wrong_type(value, expected))?;
        }
        Ok(read)
    }

    fn note(&mut self, problem: DocumentProblem) -> Result<(), TooMany> {
        let path = core::mem::take(&mut self.path);
        let noted = self.note_at(&path, problem);
        self.path = path;
        noted
    }

    fn note_at(&mut self, field: &str, problem: DocumentProblem) -> Result<(), TooMany> {
        if self.errors.0.len() >= MAX_ERRORS {
            return Err(TooMany);
        }
        self.errors.push(field, problem);
        Ok(())
    }
}

/// A value as the wire has it.
enum Encoded {
    Varint(u64),
    Double(f64),
    /// A text or a message.
    Bytes(Vec<u8>),
}

fn empty(kind: Kind) -> Encoded {
    match kind {
        Kind::Bool | Kind::Uint32 | Kind::Uint64 | Kind::Enum(_) => Encoded::Varint(0),
        Kind::Double => Encoded::Double(0.0),
        Kind::Text | Kind::Message(_) => Encoded::Bytes(Vec::new()),
    }
}

// Source: https://protobuf.dev/programming-guides/encoding/
fn put(field: &Field, value: Option<Encoded>, out: &mut Vec<u8>) {
    match value {
        None => {}
        Some(Encoded::Varint(number)) => {
            encode_key(field.number, WireType::Varint, out);
            encode_varint(number, out);
        }
        Some(Encoded::Double(number)) => {
            encode_key(field.number, WireType::SixtyFourBit, out);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Some(Encoded::Bytes(bytes)) => {
            encode_key(field.number, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            out.extend_from_slice(&bytes);
        }
    }
}

fn names(message: &Message) -> String {
    let names: Vec<&str> = message.fields.iter().map(|field| field.name).collect();
    names.join(", ")
}
