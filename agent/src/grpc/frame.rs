//! A message behind gRPC's five bytes: whether it is compressed, and its length.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;

use super::{Code, Status};

/// Ready to be sent.
pub fn pack(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.encoded_len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    // A buffer that grows has room for every message.
    let _ = message.encode(&mut framed);
    framed.freeze()
}

/// Takes the first whole message away from what has come; none: more has to come.
pub fn take(buffer: &mut BytesMut, longest: usize) -> Result<Option<Bytes>, Status> {
    let Some((head, _)) = buffer.split_at_checked(5) else { return Ok(None) };
    let length = head.iter().skip(1).fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    // One that is compressed was not asked for.
    if head.first() != Some(&0) {
        return Err(Status::new(Code::INTERNAL, "the message is compressed, which nobody asked for"));
    }
    if length > longest {
        return Err(Status::new(Code::INTERNAL, format!("the message is longer than {longest} bytes")));
    }
    if buffer.len() < 5 + length {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// The message's fields.
pub fn read<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::new(Code::INTERNAL, format!("the message can't be read: {error}")))
}

/// What of a body has come so far.
pub struct Body {
    stream: h2::RecvStream,
    buffer: BytesMut,
    longest: usize,
}

impl Body {
    /// Of an answer or a request, whose messages have at most so many bytes.
    pub fn new(stream: h2::RecvStream, longest: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), longest }
    }

    /// The next whole message; none: the body has ended.
    pub async fn message(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = take(&mut self.buffer, self.longest)? {
                return Ok(Some(message));
            }
            match self.stream.data().await {
                Some(data) => {
                    let data = data?;
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.buffer.extend_from_slice(&data);
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::new(Code::INTERNAL, "the body ended within a message")),
            }
        }
    }

    /// What comes after the body.
    pub async fn trailers(&mut self) -> Result<(), Status> {
        match self.stream.trailers().await? {
            Some(trailers) => Status::told(&trailers),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_they_are_cut(texts in prop::collection::vec(".{0,40}", 0..5), cut in 1_usize..9) {
            let sent: Vec<u8> = texts.iter().flat_map(pack).collect();
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in sent.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(message) = take(&mut buffer, 4096).unwrap() {
                    got.push(read::<String>(message).unwrap());
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(got, texts);
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut buffer = BytesMut::from(bytes.as_slice());
            while let Ok(Some(message)) = take(&mut buffer, 4096) {
                let _ = read::<String>(message);
            }
        }
    }
}
