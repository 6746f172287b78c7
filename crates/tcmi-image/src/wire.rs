//! Values as bytes of an image: little-endian, lengths before what they count, nothing in between.

use crate::format::Flaw;

type Result<T> = std::result::Result<T, Flaw>;

/// What a value is in an image.
pub trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(r: &mut Reader) -> Result<Self>;
}

/// Bytes that are still to be decoded.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Flaw::Content("a value is cut off"))?;
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Flaw::Content("a value is cut off"))?;
        self.0 = rest;
        Ok(*head)
    }
}

pub fn encode<T: Field>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

/// All of `bytes` is one value, which has no other encoding.
pub fn decode<T: Field>(bytes: &[u8]) -> Result<T> {
    let mut r = Reader(bytes);
    let value = T::get(&mut r)?;
    match r.0 {
        [] => Ok(value),
        _ => Err(Flaw::Content("bytes behind the last value")),
    }
}

macro_rules! integers {
    ($($type:ty),*) => { $(
        impl Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(r: &mut Reader) -> Result<Self> {
                r.array().map(Self::from_le_bytes)
            }
        }
    )* };
}
integers!(u8, u32, i32, u64, i64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push((*self).into());
    }
    fn get(r: &mut Reader) -> Result<Self> {
        match u8::get(r)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Flaw::Content("a truth value that is neither 0 nor 1")),
        }
    }
}

impl Field for String {
    fn put(&self, out: &mut Vec<u8>) {
        length(self.len()).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(r: &mut Reader) -> Result<Self> {
        let len = u32::get(r)? as usize;
        let text = std::str::from_utf8(r.take(len)?);
        text.map(str::to_owned).map_err(|_| Flaw::Content("text that is not UTF-8"))
    }
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        length(self.len()).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    /// Takes memory for what is there, not for what the length claims.
    fn get(r: &mut Reader) -> Result<Self> {
        let count = u32::get(r)?;
        (0..count).map(|_| T::get(r)).collect()
    }
}

fn length(n: usize) -> u32 {
    u32::try_from(n).expect("lists of a process are shorter than 4 Gi")
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|value| value.put(out));
    }
    fn get(r: &mut Reader) -> Result<Self> {
        bool::get(r)?.then(|| T::get(r)).transpose()
    }
}

impl<T: Field + Copy + Default, const N: usize> Field for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|item| item.put(out));
    }
    fn get(r: &mut Reader) -> Result<Self> {
        let mut all = [T::default(); N];
        for item in &mut all {
            *item = T::get(r)?;
        }
        Ok(all)
    }
}

impl<A: Field, B: Field> Field for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(r: &mut Reader) -> Result<Self> {
        Ok((A::get(r)?, B::get(r)?))
    }
}

impl<A: Field, B: Field, C: Field> Field for (A, B, C) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
        self.2.put(out);
    }
    fn get(r: &mut Reader) -> Result<Self> {
        Ok((A::get(r)?, B::get(r)?, C::get(r)?))
    }
}

/// A structure is its fields, in this order.
macro_rules! record {
    ($type:ty { $($field:ident),* $(,)? }) => {
        impl $crate::wire::Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::wire::Field::put(&self.$field, out);)*
            }
            fn get(
                r: &mut $crate::wire::Reader,
            ) -> std::result::Result<Self, $crate::format::Flaw> {
                $(let $field = $crate::wire::Field::get(r)?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}

/// A choice is a byte that tells which, then its fields in this order.
macro_rules! choice {
    ($type:ty, $none:literal { $($tag:literal => $variant:ident { $($field:ident),* }),* $(,)? }) => {
        impl $crate::wire::Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        out.push($tag);
                        $($crate::wire::Field::put($field, out);)*
                    })*
                }
            }
            fn get(
                r: &mut $crate::wire::Reader,
            ) -> std::result::Result<Self, $crate::format::Flaw> {
                match <u8 as $crate::wire::Field>::get(r)? {
                    $($tag => {
                        $(let $field = $crate::wire::Field::get(r)?;)*
                        Ok(Self::$variant { $($field),* })
                    })*
                    _ => Err($crate::format::Flaw::Content($none)),
                }
            }
        }
    };
}
pub(crate) use {choice, record};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_have_one_encoding() {
        type All = (Vec<(String, Option<u64>)>, [i32; 2], bool);
        let all: All = (vec![("a".into(), None), ("b".into(), Some(7))], [-1, 1], true);
        let bytes = encode(&all);
        assert_eq!(decode::<All>(&bytes), Ok(all));
        for n in 0..bytes.len() {
            assert!(decode::<All>(&bytes[..n]).is_err(), "{n} of {}", bytes.len());
        }
        assert!(decode::<All>(&[&bytes[..], &[0]].concat()).is_err());
        assert!(decode::<bool>(&[2]).is_err());
        assert!(decode::<String>(&[1, 0, 0, 0, 0xff]).is_err());
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        assert!(decode::<Vec<u64>>(&[0xff; 4]).is_err());
        assert!(decode::<String>(&[0xff; 4]).is_err());
    }
}
