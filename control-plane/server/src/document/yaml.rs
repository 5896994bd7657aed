//! YAML, and with it JSON, as a tree of values: no duplicate keys, no numbers that are none, and no more values than a policy can
//! have, whatever its aliases repeat.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most values in one document. 1024 tenants with 16 identities each have about 70,000.
const MAX_VALUES: usize = 200_000;

/// Reads a text that holds one document. Errs with line and column where the text is at fault.
///
/// What is JSON is read as JSON: YAML knows no document with a delete character in a text, which JSON writes as it is.
pub(crate) fn parse(text: &str) -> Result<Value, serde_yaml_ng::Error> {
    if text.trim_start().starts_with('{')
        && let Some(value) = json(text)
    {
        return Ok(value);
    }
    let left = Cell::new(MAX_VALUES);
    Node { left: &left }.deserialize(serde_yaml_ng::Deserializer::from_str(text))
}

/// The value of a text that is JSON; what is wrong with any other text is said by the reader of YAML.
fn json(text: &str) -> Option<Value> {
    let left = Cell::new(MAX_VALUES);
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Node { left: &left }.deserialize(&mut reader).ok()?;
    reader.end().ok().map(|()| value)
}

/// Reads one value and counts it.
#[derive(Clone, Copy)]
struct Node<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom(format_args!("more than {MAX_VALUES} values, aliases counted each time")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true, false, a list or an object")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom(format_args!("{value} is not a finite number")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    // What a text without any content is.
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            let value = object.next_value_seed(self)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format_args!("`{key}` is given twice")));
            }
        }
        Ok(Value::Object(values))
    }
}
