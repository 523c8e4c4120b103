//! What fields a type has, and of which types they are: asked of the type's own `Deserialize`, so it is the schema that is served.

use std::collections::BTreeMap;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// Fields by type, in the order in which serde names them: `Container` → `args`, `command` …; with the type that each field is of or
/// holds, where that has fields itself.
pub type Schema = BTreeMap<&'static str, Vec<Field>>;

/// A field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// As it is written in a manifest.
    pub name: &'static str,
    /// The type that it is of, or holds.
    pub of: Option<&'static str>,
}

/// Every type that can be reached from this one.
pub fn of<T: DeserializeOwned>() -> Schema {
    let mut schema = Schema::new();
    T::deserialize(Explorer { schema: &mut schema, of: &mut None }).expect("a type takes what it asks for");
    schema
}

/// Gives a type one value of whatever it asks for, and notes what it asked for.
struct Explorer<'a> {
    schema: &'a mut Schema,
    of: &'a mut Option<&'static str>,
}

type Error = de::value::Error;

impl<'de> Deserializer<'de> for Explorer<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.of = Some(name);
        if self.schema.contains_key(name) {
            return visitor.visit_map(Blank);
        }
        self.schema.insert(name, Vec::new());
        visitor.visit_map(Fields { schema: self.schema, of: name, names: fields.iter(), name: "" })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        // Quantity, Time, IntOrString, ByteString: they are written as one word.
        visitor.visit_newtype_struct(Word)
    }
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(One(Some(self)))
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(One(Some(self)))
    }
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        Word.deserialize_any(visitor)
    }
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }
    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i32(0)
    }
    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(0)
    }
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
    forward_to_deserialize_any! {
        i8 i16 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

/// A word that is a time and base64 as well as a string.
struct Word;

impl<'de> Deserializer<'de> for Word {
    type Error = Error;
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("2026-01-01T00:00:00Z").map_err(|_: Error| de::Error::custom("no word"))
    }
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("")
    }
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

struct Fields<'a> {
    schema: &'a mut Schema,
    of: &'static str,
    names: std::slice::Iter<'static, &'static str>,
    name: &'static str,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.names.next() else { return Ok(None) };
        self.name = name;
        seed.deserialize((*name).into_deserializer()).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let mut of = None;
        let value = seed.deserialize(Explorer { schema: self.schema, of: &mut of })?;
        self.schema.entry(self.of).or_default().push(Field { name: self.name, of });
        Ok(value)
    }
}

/// A structure that was looked into before.
struct Blank;

impl<'de> MapAccess<'de> for Blank {
    type Error = Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _: K) -> Result<Option<K::Value>, Error> {
        Ok(None)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("there is no value"))
    }
}

/// One element, or one entry.
struct One<'a>(Option<Explorer<'a>>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Error;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|explorer| seed.deserialize(explorer)).transpose()
    }
}

impl<'de> MapAccess<'de> for One<'_> {
    type Error = Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        if self.0.is_none() {
            return Ok(None);
        }
        seed.deserialize("key".into_deserializer()).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let explorer = self.0.take().ok_or_else(|| de::Error::custom("there is no value"))?;
        seed.deserialize(explorer)
    }
}
