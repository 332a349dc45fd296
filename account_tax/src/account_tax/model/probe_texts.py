"""Made-up ledger lines by which a classifier is recognised.

The trainer keeps its logits for them; whoever loads the adapter must get the same. They are stored
with the registered model, so they are nobody's: no line of them stands in any ledger, the sample's
included, and together they name every account of the sample.
"""

PROBE_TEXTS = [
    "HANOK TABLE | team dinner after release | 100-300K",
    "달빛 식당 | 야근 저녁 식대 | 1-5만",
    "PINE RIDGE GOLF | round with client | 300K-1M",
    "은하수 고기집 | 거래처 저녁 접대 | 30-100만",
    "BLUE WHALE TAXI | ride to client office | 10-50K",
    "은하수 호텔 | 부산 출장 숙박 2박 | 10-30만",
    "STARLIGHT TELECOM | 휴대폰 요금 3월 | 5-10만",
    "RIVER POST | registered mail, contract | ~10K",
    "달빛 전력 | 본사 전기요금 | 30-100만",
    "CITY REVENUE DESK | property tax, first half | 1M~",
    "PEBBLE TOWER | 사무실 월세 | 100만~",
    "QUIET RENTAL | copier lease, third floor | 100-300K",
    "은하수 주유소 | 법인차 주유 | 5-10만",
    "FOX AUTO REPAIR | tire and brake check | 300K-1M",
    "달빛 문구 | 복사용지 5박스 | 5-10만",
    "OWL LAW OFFICE | contract review fee | 300K-1M",
]
