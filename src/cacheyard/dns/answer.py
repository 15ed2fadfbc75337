"""What a query is answered with. No I/O: bytes in, bytes out, for `dns.server`.

Nobody is answered with much more than was asked: what is refused gets a header and the question, what
is not there gets the zone's SOA, and an answer that is too long for its datagram is left out altogether
(the client then asks by TCP). An answer is never answered, so two servers cannot keep each other busy.
"""

import struct

from dns import flags, message, rcode, rdataclass, rdatatype, rrset
from dns.exception import DNSException, TooBig
from dns.name import Name

from cacheyard.dns.zone import Zone
from cacheyard.domain.names import TTL

PLAIN = 512  # bytes of a datagram for a client that does not say how many it takes
LARGEST = 1232  # bytes of a datagram for any client: what passes every network in one piece
_HEADER = struct.Struct("!6H")
_OPCODE = 0x7800
_ADDITIONAL = 2  # records that a query may have behind its question: EDNS and a signature


def answer(wire: bytes, zone: Zone, *, stream: bool) -> bytes | None:
    """The answer to the query `wire`; None: it gets none. `stream`: it came by TCP."""
    if len(wire) < _HEADER.size:
        return None
    id_, bits, *counts = _HEADER.unpack_from(wire)
    if bits & flags.QR:
        return None
    if bits & _OPCODE:
        return _bare(id_, bits, rcode.NOTIMP)
    try:
        # The counts first: reading thousands of records only to refuse them is what takes long.
        if counts[:3] != [1, 0, 0] or counts[3] > _ADDITIONAL:
            return _bare(id_, bits, rcode.FORMERR)
        query = message.from_wire(wire, keyring=False)
    except DNSException:
        return _bare(id_, bits, rcode.FORMERR)
    reply = message.make_response(query, our_payload=LARGEST, pad=0)
    _fill(reply, query, zone)
    most = 65535 if stream else min(max(query.payload, PLAIN), LARGEST)
    try:
        return reply.to_wire(max_size=most)
    except TooBig:
        reply.answer.clear()
        reply.flags |= flags.TC
        return reply.to_wire(max_size=most)


def unable(wire: bytes) -> bytes | None:
    """The answer when the rows cannot be read."""
    if len(wire) < _HEADER.size:
        return None
    id_, bits, *_ = _HEADER.unpack_from(wire)
    return None if bits & flags.QR else _bare(id_, bits, rcode.SERVFAIL)


def _bare(id_: int, bits: int, why: rcode.Rcode) -> bytes:
    reply = message.Message(id=id_)
    reply.flags = flags.Flag(flags.QR | bits & (_OPCODE | flags.RD))
    reply.set_rcode(why)
    return reply.to_wire()


def _fill(reply: message.Message, query: message.Message, zone: Zone) -> None:
    asked = query.question[0]
    if query.edns > 0:
        reply.set_rcode(rcode.BADVERS)
        return
    everything = asked.rdtype == rdatatype.ANY
    ours = asked.rdclass == rdataclass.IN and asked.name.is_subdomain(zone.origin)
    if not ours or (rdatatype.is_metatype(asked.rdtype) and not everything):  # such as a transfer
        reply.set_rcode(rcode.REFUSED)
        return
    reply.flags |= flags.AA
    found = zone.at(asked.name)
    if found is None:
        reply.set_rcode(rcode.NXDOMAIN)
    elif everything:  # RFC 8482: one small record instead of all
        reply.answer.append(_records(asked.name, rdatatype.HINFO, ['"RFC8482" ""']))
    elif asked.rdtype in found:
        reply.answer.append(_records(asked.name, asked.rdtype, found[asked.rdtype]))
    if not reply.answer:
        reply.authority.append(_records(zone.origin, rdatatype.SOA, zone.soa))


def _records(name: Name, kind: rdatatype.RdataType, texts: list[str]) -> rrset.RRset:
    return rrset.from_text_list(name, TTL, rdataclass.IN, kind, texts)
