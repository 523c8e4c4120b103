//! Messages: what is asked, and answers as bytes. Answers of others stay the bytes that they are; of them only the times to live
//! are found, so that records of every type pass.

use std::net::IpAddr;

use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord,
    rdata::{A, AAAA, CNAME, OPT, PTR, RData, SOA, SRV, TXT},
};

use super::zone::{Answer, Record};

/// What the world's name servers take without fragments (DNS flag day 2020).
pub(crate) const UDP_SIZE: u16 = 1232;
/// Of a client without EDNS.
const OLD_UDP_SIZE: usize = 512;
/// Seconds that our own answers may be kept: as CoreDNS.
const TTL: u32 = 5;
const HEADER: usize = 12;
const TYPE_OPT: u16 = 41;
const TYPE_SOA: u16 = 6;
const FLAG_TRUNCATED: u8 = 0x02;
const FLAG_RESPONSE: u8 = 0x80;
const SERVER_FAILURE: u8 = 2;
const NAME_ERROR: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// What an alias leads to.
#[derive(Debug)]
pub(crate) struct Behind {
    /// Whether there is such a name (RFC 6604: the last of a chain decides).
    pub(crate) exists: bool,
    /// With the names that they are of.
    pub(crate) records: Vec<(String, Record)>,
}

impl Default for Behind {
    fn default() -> Behind {
        Behind { exists: true, records: Vec::new() }
    }
}

/// A question that can be answered.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    packet: Packet<'a>,
    /// In lower case, without a final dot.
    pub(crate) name: String,
    /// The type's number.
    pub(crate) kind: u16,
}

impl<'a> Query<'a> {
    /// None: nothing that anybody could answer. Then the code says what to tell, if something.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Query<'a>, Option<Vec<u8>>> {
        if bytes.len() < HEADER || bytes[2] & FLAG_RESPONSE != 0 {
            return Err(None);
        }
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        let Ok(packet) = Packet::parse(bytes) else { return Err(refusal(id, RCODE::FormatError)) };
        if packet.opcode() != OPCODE::StandardQuery {
            return Err(refusal(id, RCODE::NotImplemented));
        }
        let [question] = packet.questions.as_slice() else { return Err(refusal(id, RCODE::FormatError)) };
        let kind = match question.qtype {
            QTYPE::TYPE(kind) => kind.into(),
            QTYPE::ANY => super::zone::ANY,
            _ => return Err(refusal(id, RCODE::NotImplemented)),
        };
        let name = question.qname.to_string().to_ascii_lowercase();
        Ok(Query { packet, name, kind })
    }

    /// How much the client takes by UDP.
    pub(crate) fn room(&self) -> usize {
        self.packet.opt().map_or(OLD_UDP_SIZE, |opt| usize::from(opt.udp_packet_size).clamp(OLD_UDP_SIZE, 4096))
    }

    /// An answer of the zone, with what an alias in it leads to. None: a name in it is none that a message can have.
    pub(crate) fn answer(&self, domain: &str, answer: &Answer, behind: &Behind) -> Option<Vec<u8>> {
        let mut reply = self.reply(if answer.exists && behind.exists { RCODE::NoError } else { RCODE::NameError });
        reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        let own = self.packet.questions.first()?.qname.clone();
        for record in &answer.records {
            reply.answers.push(ResourceRecord::new(own.clone(), CLASS::IN, TTL, data(record)?));
        }
        for (name, record) in &behind.records {
            reply.answers.push(ResourceRecord::new(Name::new(name).ok()?, CLASS::IN, TTL, data(record)?));
        }
        for (name, record) in &answer.additional {
            reply.additional_records.push(ResourceRecord::new(Name::new(name).ok()?, CLASS::IN, TTL, data(record)?));
        }
        let (mname, rname) = (format!("ns.dns.{domain}"), format!("hostmaster.{domain}"));
        if reply.answers.is_empty() {
            let soa = SOA {
                mname: Name::new(&mname).ok()?,
                rname: Name::new(&rname).ok()?,
                serial: 1,
                refresh: 7200,
                retry: 1800,
                expire: 86_400,
                minimum: TTL,
            };
            reply.name_servers.push(ResourceRecord::new(Name::new(domain).ok()?, CLASS::IN, TTL, RData::SOA(soa)));
        }
        reply.build_bytes_vec_compressed().ok()
    }

    /// That nobody could be asked.
    pub(crate) fn failed(&self) -> Option<Vec<u8>> {
        self.reply(RCODE::ServerFailure).build_bytes_vec().ok()
    }

    fn reply(&self, code: RCODE) -> Packet<'a> {
        let mut reply = Packet::new_reply(self.packet.id());
        *reply.rcode_mut() = code;
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
        if self.packet.has_flags(PacketFlag::RECURSION_DESIRED) {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        reply.questions.clone_from(&self.packet.questions);
        if self.packet.opt().is_some() {
            *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: UDP_SIZE, version: 0 });
        }
        reply
    }
}

fn refusal(id: u16, code: RCODE) -> Option<Vec<u8>> {
    let mut reply = Packet::new_reply(id);
    *reply.rcode_mut() = code;
    reply.build_bytes_vec().ok()
}

fn data(record: &Record) -> Option<RData<'_>> {
    Some(match record {
        Record::Address(IpAddr::V4(ip)) => RData::A(A { address: (*ip).into() }),
        Record::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA { address: (*ip).into() }),
        Record::Alias(name) => RData::CNAME(CNAME(Name::new(name).ok()?)),
        Record::Pointer(name) => RData::PTR(PTR(Name::new(name).ok()?)),
        Record::Service(port, name) => RData::SRV(SRV { priority: 0, weight: 100, port: *port, target: Name::new(name).ok()? }),
        Record::Text(text) => RData::TXT(TXT::new().with_string(text).ok()?),
    })
}

/// A question of our own, about another name than the client's.
pub(crate) fn question(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut query = Packet::new_query(id);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let kind = QTYPE::TYPE(kind.into());
    query.questions.push(simple_dns::Question::new(Name::new(name).ok()?, kind, CLASS::IN.into(), false));
    query.build_bytes_vec().ok()
}

/// The addresses and aliases of an answer.
pub(crate) fn addresses(answer: &[u8]) -> Vec<(String, Record)> {
    let Ok(packet) = Packet::parse(answer) else { return Vec::new() };
    let of = |record: &ResourceRecord<'_>| {
        let found = match &record.rdata {
            RData::A(a) => Record::Address(IpAddr::V4(a.address.into())),
            RData::AAAA(a) => Record::Address(IpAddr::V6(a.address.into())),
            RData::CNAME(name) => Record::Alias(name.0.to_string()),
            _ => return None,
        };
        Some((record.name.to_string(), found))
    };
    packet.answers.iter().filter_map(of).collect()
}

/// The beginning of an answer that is too long for UDP: asks the client to come back by TCP.
pub(crate) fn truncated(mut answer: Vec<u8>) -> Option<Vec<u8>> {
    let end = questions_end(&answer)?;
    answer.truncate(end);
    answer[2] |= FLAG_TRUNCATED;
    answer[6..HEADER].fill(0);
    Some(answer)
}

pub(crate) fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & FLAG_TRUNCATED != 0)
}

/// Whether who answers couldn't find out, which says nothing about the name.
pub(crate) fn fails(answer: &[u8]) -> bool {
    !matches!(code(answer), Some(0 | NAME_ERROR))
}

/// Whether another resolver may well know: what glibc's goes on to the next for.
pub(crate) fn passes_on(answer: &[u8]) -> bool {
    matches!(code(answer), Some(SERVER_FAILURE | NOT_IMPLEMENTED | REFUSED))
}

/// Whether the name is one.
pub(crate) fn exists(answer: &[u8]) -> bool {
    code(answer) != Some(NAME_ERROR)
}

fn code(answer: &[u8]) -> Option<u8> {
    answer.get(3).map(|flags| flags & 0x0f)
}

/// Whether an answer is one to this question.
pub(crate) fn answers(answer: &[u8], query: &[u8]) -> bool {
    let question = |message: &[u8]| {
        let end = questions_end(message)?;
        Some(message[HEADER..end].to_ascii_lowercase())
    };
    answer.get(..2) == query.get(..2)
        && answer.get(2).is_some_and(|flags| flags & FLAG_RESPONSE != 0)
        && question(answer).is_some_and(|asked| question(query) == Some(asked))
}

/// Makes an answer to a question one to another that asks for the same: its ID, and its name as it is written there, by which some clients
/// know their own (draft-vixie-dnsext-dns0x20).
pub(crate) fn address(answer: &mut [u8], query: &[u8]) -> Option<()> {
    let end = questions_end(query)?;
    answer.get_mut(..2)?.copy_from_slice(&query[..2]);
    answer.get_mut(HEADER..end)?.copy_from_slice(&query[HEADER..end]);
    Some(())
}

/// What tells questions apart: the question, case apart, and what the flags and EDNS ask for beside it. A cookie (RFC 7873) is its client's
/// alone, who takes no answer with another's.
pub(crate) fn cache_key(query: &[u8]) -> Option<Vec<u8>> {
    let end = questions_end(query)?;
    let mut key = query[HEADER..end].to_ascii_lowercase();
    key.extend([query[2] & 0x01, query[3] & 0x30]);
    if let Some(opt) = records(query)?.into_iter().find(|record| record.kind == TYPE_OPT) {
        // DO, as part of what is a record's time to live.
        key.extend([1, query.get(opt.ttl + 2).copied().unwrap_or_default() & 0x80]);
        key.extend(query.get(opt.ttl + 6..opt.end)?);
    }
    Some(key)
}

/// How long an answer may be kept, and where the times to live stand in it. Only what is there and what surely isn't is worth keeping.
pub(crate) fn lifetime(answer: &[u8]) -> Option<(u32, Vec<usize>)> {
    if fails(answer) || is_truncated(answer) {
        return None;
    }
    let records = records(answer)?;
    let has_answers = u16_at(answer, 6)? > 0;
    let ttl = |at: usize| Some(u32::from_be_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let of_records = records.iter().filter(|record| record.kind != TYPE_OPT).filter_map(|record| ttl(record.ttl)).min()?;
    // RFC 2308: what isn't there may be kept as long as the zone's SOA says, in its last field.
    let negative = records.iter().find(|record| record.kind == TYPE_SOA).and_then(|soa| ttl(soa.end.checked_sub(4)?));
    let least = if has_answers { of_records } else { of_records.min(negative?) };
    let at = records.iter().filter(|record| record.kind != TYPE_OPT).map(|record| record.ttl).collect();
    Some((least, at))
}

struct At {
    kind: u16,
    ttl: usize,
    end: usize,
}

/// Where the records of a message are.
fn records(message: &[u8]) -> Option<Vec<At>> {
    let count: usize = [6, 8, 10].into_iter().map(|at| u16_at(message, at).map(usize::from)).sum::<Option<usize>>()?;
    let mut at = questions_end(message)?;
    let mut records = Vec::new();
    for _ in 0..count {
        at = skip_name(message, at)?;
        let end = at + 10 + usize::from(u16_at(message, at + 8)?);
        message.get(..end)?;
        records.push(At { kind: u16_at(message, at)?, ttl: at + 4, end });
        at = end;
    }
    Some(records)
}

fn questions_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    for _ in 0..u16_at(message, 4)? {
        at = skip_name(message, at)? + 4;
    }
    (at <= message.len()).then_some(at)
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            // A pointer ends a name.
            _ => return Some(at + 2),
        }
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_has_its_question_and_its_records() {
        let query = question(7, "Web.shop.svc.cluster.local", 1).unwrap();
        let parsed = Query::parse(&query).unwrap();
        assert_eq!((parsed.name.as_str(), parsed.kind), ("web.shop.svc.cluster.local", 1));
        let answer = Answer { exists: true, records: vec![Record::Address([10, 96, 0, 5].into())], additional: Vec::new() };
        let bytes = parsed.answer("cluster.local", &answer, &Behind::default()).unwrap();
        assert!(answers(&bytes, &query));
        assert_eq!(addresses(&bytes), [("Web.shop.svc.cluster.local".to_owned(), answer.records[0].clone())]);
        assert_eq!(lifetime(&bytes).unwrap().0, TTL);
        let short = truncated(bytes).unwrap();
        assert!(is_truncated(&short) && addresses(&short).is_empty() && answers(&short, &query));
    }

    #[test]
    fn what_is_not_there_may_be_kept_too() {
        let query = question(7, "nope.cluster.local", 28).unwrap();
        let bytes = Query::parse(&query).unwrap().answer("cluster.local", &Answer::default(), &Behind::default()).unwrap();
        assert_eq!(bytes[3] & 0x0f, 3);
        assert_eq!(lifetime(&bytes).unwrap().0, TTL);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Query::parse(&bytes);
            let _ = (lifetime(&bytes), cache_key(&bytes), answers(&bytes, &bytes), addresses(&bytes), truncated(bytes));
        }
    }
}
