use super::frame::Kind;
use super::*;
use rstest::rstest;
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;

/// The other end of a connection: a client in bytes.
pub(in crate::api) struct Client {
    io: DuplexStream,
    headers: flate2::Compress,
}

impl Client {
    pub(in crate::api) fn connect(patience: Patience) -> (Self, mpsc::Receiver<Stream>, JoinHandle<Result<(), SpdyError>>) {
        let (near, far) = duplex(64 * 1024);
        let (streams, connection) = serve(far, patience);
        let mut headers = flate2::Compress::new(flate2::Compression::default(), true);
        headers.set_dictionary(&dictionary::dictionary()).unwrap();
        (Self { io: near, headers }, streams, tokio::spawn(connection))
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) {
        let mut frame = vec![0x80, 3];
        frame.extend(kind.to_be_bytes());
        frame.extend((u32::from(flags) << 24 | payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        self.io.write_all(&frame).await.unwrap();
    }

    async fn open(&mut self, id: u32, name: &str, value: &str) {
        self.open_with(id, &[(name, value)]).await;
    }

    pub(in crate::api) async fn open_with(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut payload = [id.to_be_bytes(), [0; 4]].concat();
        payload.extend([0, 0]);
        let mut packed = Vec::with_capacity(plain.len() + 100);
        self.headers.compress_vec(&plain, &mut packed, flate2::FlushCompress::Sync).unwrap();
        payload.extend(packed);
        self.control(control::SYN_STREAM, 0, &payload).await;
    }

    async fn data(&mut self, id: u32, flags: u8, bytes: &[u8]) {
        self.io.write_all(&frame::data(id, flags, bytes)).await.unwrap();
    }

    pub(in crate::api) async fn next(&mut self) -> (Kind, u8, Vec<u8>) {
        let mut header = [0; HEADER];
        self.io.read_exact(&mut header).await.unwrap();
        let header = Header::parse(header).unwrap();
        let mut payload = vec![0; header.length];
        self.io.read_exact(&mut payload).await.unwrap();
        (header.kind, header.flags, payload)
    }

    async fn is_told(&mut self, kind: u16) -> Vec<u8> {
        let (told, _, payload) = self.next().await;
        assert_eq!(told, Kind::Control(kind));
        payload
    }
}

const SOON: Patience = Patience::Until(Duration::from_millis(20));

#[tokio::test]
async fn bytes_go_both_ways_and_each_has_its_end() {
    let (mut client, mut streams, connection) = Client::connect(SOON);
    client.open(1, "StreamType", "data").await;
    let stream = streams.recv().await.unwrap();
    assert_eq!(stream.header("streamtype"), Some("data"));
    client.is_told(control::SYN_REPLY).await;
    let (mut incoming, sender) = stream.split();
    client.data(1, 0, &vec![7; 40_000]).await;
    client.data(1, FIN, b"end").await;
    let mut got = Vec::new();
    while let Some(piece) = incoming.recv().await {
        assert!(piece.len() <= PIECE);
        got.extend(piece);
    }
    assert_eq!((got.len(), &got[40_000..]), (40_003, &b"end"[..]));
    sender.send(b"answer").await.unwrap();
    sender.finish().await.unwrap();
    drop((sender, streams));
    assert_eq!(client.next().await, (Kind::Data(1), 0, b"answer".to_vec()));
    assert_eq!(client.next().await, (Kind::Data(1), FIN, Vec::new()));
    connection.await.unwrap().unwrap();
}

/// An empty header costs the client nothing on the wire, and us memory for as long as the stream lasts.
#[rstest]
#[case::as_many_as_may_be(64, true)]
#[case::one_more(65, false)]
#[case::very_many(3000, false)]
#[tokio::test]
async fn a_stream_has_few_headers(#[case] count: usize, #[case] fine: bool) {
    let (mut client, mut streams, connection) = Client::connect(SOON);
    client.open_with(1, &vec![("", ""); count]).await;
    if fine {
        assert_eq!(streams.recv().await.unwrap().headers.len(), count);
    } else {
        assert!(streams.recv().await.is_none());
        connection.await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn headers_are_not_large() {
    let (mut client, mut streams, connection) = Client::connect(SOON);
    client.open_with(1, &[("a", &"b".repeat(frame::HEADERS_LIMIT))]).await;
    assert!(streams.recv().await.is_none());
    connection.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_ping_is_answered() {
    let (mut client, _streams, _connection) = Client::connect(SOON);
    client.control(control::PING, 0, &[0, 0, 0, 9]).await;
    assert_eq!(client.is_told(control::PING).await, [0, 0, 0, 9]);
}

#[tokio::test]
async fn a_stuck_stream_is_reset_and_the_others_go_on() {
    let (mut client, mut streams, _connection) = Client::connect(SOON);
    client.open(1, "a", "stuck").await;
    client.open(3, "a", "lively").await;
    let stuck = streams.recv().await.unwrap();
    let (mut lively, _lively) = streams.recv().await.unwrap().split();
    client.is_told(control::SYN_REPLY).await;
    client.is_told(control::SYN_REPLY).await;
    client.data(1, 0, &vec![0; PIECE * (DEEPEST + 1)]).await;
    client.data(3, 0, b"still here").await;
    assert_eq!(lively.recv().await.unwrap(), "still here");
    assert_eq!(client.is_told(control::RST_STREAM).await[..4], [0, 0, 0, 1]);
    assert_eq!(stuck.split().1.send(b"late").await, Err(Gone));
}

#[tokio::test]
async fn nobody_waits_for_a_stuck_stream_as_long_as_there_is_room_for_what_it_is_sent() {
    let (mut client, mut streams, _connection) = Client::connect(Patience::Until(Duration::MAX));
    client.open(1, "a", "stuck").await;
    client.open(3, "a", "lively").await;
    let (mut stuck, _stuck) = streams.recv().await.unwrap().split();
    let (mut lively, _lively) = streams.recv().await.unwrap().split();
    for _ in 0..DEEPEST {
        client.data(1, 0, &[1; PIECE]).await;
        client.data(3, 0, b"still here").await;
        assert_eq!(lively.recv().await.unwrap(), "still here");
    }
    // Nothing of it is lost, and its room is free again.
    for _ in 0..DEEPEST {
        assert_eq!(stuck.recv().await.unwrap().len(), PIECE);
    }
    client.data(1, 0, &[1; PIECE]).await;
    assert_eq!(stuck.recv().await.unwrap().len(), PIECE);
}

#[tokio::test]
async fn each_stream_has_room_of_its_own_however_many_are_stuck() {
    let (mut client, mut streams, _connection) = Client::connect(Patience::Until(Duration::MAX));
    let mut stuck = Vec::new();
    for number in 0..COMMON / (DEEPEST - BACKLOG) + 2 {
        client.open(number as u32 * 2 + 1, "a", "stuck").await;
        client.is_told(control::SYN_REPLY).await;
        stuck.push(streams.recv().await.unwrap());
    }
    let mut left = COMMON;
    for number in 0..stuck.len() {
        let common = left.min(DEEPEST - BACKLOG);
        left -= common;
        client.data(number as u32 * 2 + 1, 0, &vec![1; PIECE * (BACKLOG + common)]).await;
    }
    assert_eq!(left, 0);
    client.open(9999, "a", "lively").await;
    let (mut lively, _lively) = streams.recv().await.unwrap().split();
    for _ in 0..2 * COMMON {
        client.data(9999, 0, &[1; PIECE]).await;
        assert_eq!(lively.recv().await.unwrap().len(), PIECE);
    }
}

#[tokio::test]
async fn a_reset_by_the_client_ends_both_directions() {
    let (mut client, mut streams, _connection) = Client::connect(SOON);
    client.open(1, "a", "b").await;
    let (mut incoming, sender) = streams.recv().await.unwrap().split();
    client.control(control::RST_STREAM, 0, &[0, 0, 0, 1, 0, 0, 0, 5]).await;
    assert_eq!(incoming.recv().await, None);
    sender.closed().await;
    assert_eq!(sender.send(b"late").await, Err(Gone));
}

#[rstest]
#[case::at_once(true)]
#[case::late(false)]
#[tokio::test(start_paused = true)]
async fn it_is_the_clients_to_end_a_connection_on_which_all_is_said(#[case] goes: bool) {
    let (mut client, mut streams, connection) = Client::connect(SOON);
    client.open(1, "a", "b").await;
    let (_, sender) = streams.recv().await.unwrap().split();
    drop(streams);
    sender.send(b"the last").await.unwrap();
    sender.finish().await.unwrap();
    drop(sender);
    client.is_told(control::SYN_REPLY).await;
    tokio::time::sleep(FAREWELL * 9 / 10).await;
    assert!(!connection.is_finished());
    let client = if goes { None } else { Some(client) };
    connection.await.unwrap().unwrap();
    drop(client);
}

#[tokio::test]
async fn too_many_streams_are_refused_and_places_come_back() {
    let (mut client, mut streams, _connection) = Client::connect(SOON);
    let mut held = Vec::new();
    for number in 0..STREAMS as u32 {
        client.open(number * 2 + 1, "a", "b").await;
        held.push(streams.recv().await.unwrap());
        client.is_told(control::SYN_REPLY).await;
    }
    client.open(STREAMS as u32 * 2 + 1, "a", "b").await;
    client.is_told(control::RST_STREAM).await;
    held.pop();
    client.open(STREAMS as u32 * 2 + 3, "a", "b").await;
    client.is_told(control::SYN_REPLY).await;
}

#[rstest]
#[case::another_protocol(b"GET / HTTP/1.1\r\n\r\n".to_vec())]
#[case::another_version(vec![0x80, 2, 0, 1, 0, 0, 0, 0])]
#[case::large_control(vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff])]
#[case::short_syn(vec![0x80, 3, 0, 1, 0, 0, 0, 2, 0, 1])]
#[case::bad_headers(vec![0x80, 3, 0, 8, 0, 0, 0, 8, 0, 0, 0, 1, 9, 9, 9, 9])]
#[tokio::test]
async fn nonsense_ends_the_connection(#[case] bytes: Vec<u8>) {
    let (mut client, _streams, connection) = Client::connect(SOON);
    client.io.write_all(&bytes).await.unwrap();
    drop(client);
    // Bytes of a stream that isn't there are passed over: `GET ` begins such a frame.
    let ended = connection.await.unwrap();
    assert!(ended.is_err() || bytes[0] & 0x80 == 0);
}
