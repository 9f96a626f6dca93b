//! The body of `dag/import`: a `CARv1` in a form of one file, made from blocks that are
//! not copied.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::holder::raw;
use crate::content::car::{CarError, encode_header, put_section_head};
use crate::types::{Block, Cid};

/// Parts the form's fields; no body may hold it by chance.
const BOUNDARY: &str = "cairn-5e1f2b7c9a084d36b1c7f0e2d49a6385";

/// The `Content-Type` of the body.
pub(in crate::backends) const CONTENT_TYPE: &str =
    "multipart/form-data; boundary=cairn-5e1f2b7c9a084d36b1c7f0e2d49a6385";

/// Pieces that are sent one after the other; its length is known.
#[derive(Debug)]
pub(in crate::backends) struct Pieces {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl Pieces {
    /// Of these.
    pub fn new(pieces: VecDeque<Bytes>) -> Self {
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { pieces, left }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.pieces.pop_front();
        if let Some(piece) = &next {
            self.left -= piece.len() as u64;
        }
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// An archive of the blocks, each under this CID.
///
/// # Errors
/// None that is known.
pub(in crate::backends) fn archive<'b>(
    roots: &[Cid],
    blocks: impl Iterator<Item = (Cid, &'b Bytes)>,
) -> Result<VecDeque<Bytes>, CarError> {
    let mut pieces = VecDeque::new();
    let mut next = encode_header(roots)?;
    for (id, data) in blocks {
        put_section_head(&mut next, &id, data.len() as u64)?;
        pieces.push_back(Bytes::from(std::mem::take(&mut next)));
        if !data.is_empty() {
            pieces.push_back(data.clone());
        }
    }
    if !next.is_empty() {
        pieces.push_back(Bytes::from(next));
    }
    Ok(pieces)
}

/// A form of these fields and a file, which is an archive.
pub(in crate::backends) fn in_form(
    fields: &[(&str, &str)],
    mut archive: VecDeque<Bytes>,
) -> Pieces {
    let field = |(name, value): &(&str, &str)| {
        format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        )
    };
    let fields: String = fields.iter().map(field).collect();
    let head = format!(
        "{fields}--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; \
         filename=\"blocks.car\"\r\nContent-Type: application/vnd.ipld.car\r\n\r\n"
    );
    archive.push_front(Bytes::from(head));
    archive.push_back(Bytes::from(format!("\r\n--{BOUNDARY}--\r\n")));
    Pieces::new(archive)
}

/// An archive of the blocks, each as raw, in a form.
///
/// # Errors
/// None that is known.
pub(in crate::backends) fn form(roots: &[Cid], blocks: &[&Block]) -> Result<Pieces, CarError> {
    let sections = blocks.iter().map(|block| (raw(&block.cid), &block.data));
    Ok(in_form(&[], archive(roots, sections)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_form_holds_a_car_that_another_reader_takes() {
        let blocks = [b"one".to_vec(), Vec::new(), vec![7; 100_000]];
        let blocks = blocks.map(|data| Block::raw(data.into()));
        let holders = super::super::holder::Holders::new("f");
        for count in [1usize, 3, 23, 24, 255, 256, 400, 50_000] {
            let roots: Vec<Cid> =
                (0..count).map(|n| holders.of(&blocks[0].cid, n as u64).unwrap()).collect();
            let mut pieces = form(&roots, &blocks.iter().collect::<Vec<_>>()).unwrap();
            let wanted = pieces.size_hint().exact().unwrap();
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.pieces.pop_front() {
                bytes.extend_from_slice(&piece);
            }
            assert_eq!(bytes.len() as u64, wanted);
            let start = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
            let end = bytes.len() - format!("\r\n--{BOUNDARY}--\r\n").len();
            let mut reader = iroh_car::CarReader::new(&bytes[start..end]).await.unwrap();
            assert_eq!(reader.header().roots(), roots);
            for block in &blocks {
                let (id, data) = reader.next_block().await.unwrap().unwrap();
                assert_eq!((id, data), (block.cid, block.data.to_vec()));
            }
            assert!(reader.next_block().await.unwrap().is_none());
        }
        assert!(CONTENT_TYPE.ends_with(BOUNDARY));
    }
}
