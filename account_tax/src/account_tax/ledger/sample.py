"""The built-in sample: a synthetic expense ledger whose best possible score is known.

Every line is drawn from `KINDS`, a table of what companies buy and the accounts it is booked to.
Some kinds belong to more than one account (a meal is welfare or entertainment), and a stated share
of labels is wrong, so even a perfect classifier errs; `ceiling` computes by how much.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import TypeVar

import numpy as np
import pandas as pd

T = TypeVar("T")

WELFARE, ENTERTAINMENT, TRAVEL, TELECOM = "복리후생비", "접대비", "여비교통비", "통신비"
UTILITIES, TAXES, RENT = "수도광열비", "세금과공과", "임차료"
VEHICLE, SUPPLIES, FEES = "차량유지비", "소모품비", "지급수수료"
# Sorted, as everywhere else in the project: a label's id is its place in this order.
ACCOUNTS = sorted(
    [WELFARE, ENTERTAINMENT, TRAVEL, TELECOM, UTILITIES, TAXES, RENT, VEHICLE, SUPPLIES, FEES]
)

ROWS = 4000
SEED = 20260101
NOISE_SHARE = 0.02  # of all lines: booked to one of the nine wrong accounts, each equally likely
PAYMENT_SHARE = 0.25  # of all lines: the statement names the payment service, not the shop
LINES_PER_VOUCHER = (1, 2, 3, 4)
COLUMNS = ["text", "label", "merchant", "memo", "amount_band", "voucher"]

# (Korean, English) in won; a line's memo decides the language of its band.
BANDS = [
    ("~1만", "~10K"),
    ("1-5만", "10-50K"),
    ("5-10만", "50-100K"),
    ("10-30만", "100-300K"),
    ("30-100만", "300K-1M"),
    ("100만~", "1M~"),
]

# A merchant is an invented name or a trade, and a place, which says nothing about the account.
PLACES = [
    ("강남", "GANGNAM"), ("종로", "JONGNO"), ("마포", "MAPO"), ("서초", "SEOCHO"),
    ("송파", "SONGPA"), ("용산", "YONGSAN"), ("구로", "GURO"), ("판교", "PANGYO"),
    ("분당", "BUNDANG"), ("수원", "SUWON"), ("일산", "ILSAN"), ("인천", "INCHEON"),
    ("부산", "BUSAN"), ("대구", "DAEGU"), ("대전", "DAEJEON"), ("광주", "GWANGJU"),
    ("울산", "ULSAN"), ("김포", "GIMPO"), ("청주", "CHEONGJU"), ("전주", "JEONJU"),
    ("창원", "CHANGWON"), ("포항", "POHANG"), ("원주", "WONJU"), ("제주", "JEJU"),
]  # fmt: skip

RESTAURANT = "{} BISTRO; {} GRILL; {} KITCHEN; {} NOODLES; {} SUSHI; {} 한식당; {} 국밥; {} 고기집"
CAFE = "{} COFFEE; {} BAKERY; {} TEA ROOM; {} 카페; {} 커피"
FLORIST = "{} FLOWERS; {} FLORIST; {} 꽃집; {} 화원"
GIFTS = "{} GIFT SHOP; {} FRUIT BASKET; {} 선물; {} 한과"
TAXI = "{} TAXI; {} CAB; {} 택시; {} 콜택시"
STATION = "{} TERMINAL; {} TICKET OFFICE; {} 터미널; {} 매표소"
AIRLINE = "{} AIRPORT DESK; {} FLIGHT DESK; {} 항공권; {} 공항"
HOTEL = "{} HOTEL; {} INN; {} GUEST HOUSE; {} 호텔; {} 모텔"
PARKING = "{} PARKING; {} PARK LOT; {} 주차장; {} 공영주차장"
TOLLGATE = "{} TOLLGATE; {} IC TOLL; {} 톨게이트; {} 영업소"
FUEL = "{} GAS STATION; {} OIL; {} 주유소; {} 석유"
GARAGE = "{} AUTO REPAIR; {} MOTORS; {} AUTO SERVICE; {} 카센터; {} 정비소"
CARRENTAL = "{} RENT A CAR; {} CAR LEASE; {} 렌터카; {} 카리스"
TELECOMS = "MOONLIT TELECOM {}; PEBBLE MOBILE {}; {} BROADBAND; 솔바람통신 {}; 소나기모바일 {}"
POST = "{} POST OFFICE; {} MAIL CENTER; {} 우체국; {} 우편집중국"
TOWNHALL = "{} CIVIC CENTER; {} LOCAL TAX DESK; {} 민원실; {} 지방세과"
TAXOFFICE = "{} TAX OFFICE; {} REVENUE; {} 세무서; {} 세무지서"
ASSOCIATION = "{} TRADE ASSN; {} GUILD; {} 상공인; {} 조합"
PROPERTY = "{} TOWER; {} PROPERTY; {} REAL ESTATE; {} 빌딩; {} 부동산"
EQUIPMENT = "{} RENTAL; {} LEASING; {} 렌탈; {} 리스"
STATIONER = "{} STATIONERY; {} OFFICE GOODS; {} 문구; {} 오피스"
COMPUTERS = "{} PC MART; {} COMPUTER; {} 컴퓨터; {} 전산"
MART = "{} MART; {} SUPERMARKET; {} 마트; {} 슈퍼"
PRINTER = "{} PRINT; {} COPY; {} 인쇄; {} 프린트"
BANK = "MOONLIT BANK {}; PEBBLE SAVINGS {}; 솔바람은행 {}; 소나기금고 {}"
SOFTWARE = "{} CLOUD; {} SOFT; {} DATA CENTER; {} 소프트; {} 클라우드"
PAYMENT = "{} PAY; {} ONLINE; {} CHECKOUT; {} 페이; {} 결제"

# Who a purchase is for: it settles the account of a meal or a gift, and of nothing else.
# fmt: off
PEOPLE = {
    "staff":
        "team; staff; employees; crew; interns; new hires; engineers; night shift; sales team; "
        "lab members; colleagues; department; warehouse workers; support desk; designers; "
        "accountants; trainees; drivers; office managers; hr people",
    "client":
        "client; customer; buyer; distributor; investor; partner firm; prospect; reseller; "
        "overseas guest; key account; supplier; visiting agent; importer; wholesaler; retailer; "
        "business partner; major vendor; purchaser; franchisee; contractor",
    "직원": "직원; 팀; 부서; 사원; 신입; 영업팀",
    "거래처": "거래처; 고객사; 바이어; 협력사; 대리점; 손님",
}
# fmt: on


@dataclass(frozen=True, eq=False)  # hashed by identity: `accounts` is a dict
class Kind:
    """A kind of purchase: how often it happens, where it is booked, how its lines look.

    Attributes:
        weight: Lines in a thousand.
        accounts: Share of each account; more than one makes the line ambiguous.
        merchants: Name patterns separated by "; ", the place goes into the braces.
        bands: Amount bands, indices into `BANDS`.
        memos: Memo patterns separated by "; ", with a key of `PEOPLE` in braces.
    """

    weight: int
    accounts: dict[str, float]
    merchants: str
    bands: tuple[int, ...]
    memos: str

    @cached_property
    def merchant_shares(self) -> dict[str, float]:
        """Return how often each merchant pattern appears."""
        own, payment = self.merchants.split("; "), PAYMENT.split("; ")
        return dict.fromkeys(own, (1 - PAYMENT_SHARE) / len(own)) | dict.fromkeys(
            payment, PAYMENT_SHARE / len(payment)
        )

    @cached_property
    def memo_shares(self) -> dict[str, float]:
        """Return how often each memo appears, the people filled in."""
        patterns = self.memos.split("; ")
        shares = {}
        for pattern in patterns:
            memos = _fill(pattern)
            shares |= dict.fromkeys(memos, 1 / len(patterns) / len(memos))
        return shares

    @cached_property
    def band_shares(self) -> dict[int, float]:
        """Return how often each amount band appears."""
        return dict.fromkeys(self.bands, 1 / len(self.bands))


def _fill(pattern: str) -> list[str]:
    """Return the memos a pattern stands for: one for each of its people, else itself."""
    for key, people in PEOPLE.items():
        if f"{{{key}}}" in pattern:
            return [pattern.format(**{key: who}) for who in people.split("; ")]
    return [pattern]


# fmt: off
KINDS = [
    # Meals and coffee: who sat at the table decides; a bare memo leaves only the amount.
    Kind(64, {WELFARE: 1}, RESTAURANT, (1, 2, 3),
         "{staff} lunch; dinner for {staff}; overtime meal, {staff}; year-end party, {staff}; "
         "{직원} 식대; {직원} 저녁; {직원} 점심"),
    Kind(34, {WELFARE: 1}, CAFE, (0, 1),
         "coffee for {staff}; snacks for {staff}; pantry drinks; {직원} 음료; {직원} 간식"),
    Kind(38, {ENTERTAINMENT: 1}, RESTAURANT, (2, 3, 4),
         "{client} dinner; lunch with {client}; hosting {client}; evening with {client}; "
         "{거래처} 식사; {거래처} 저녁; {거래처} 접대"),
    Kind(12, {ENTERTAINMENT: 1}, CAFE, (0, 1),
         "coffee with {client}; cake for {client}; {거래처} 음료; {거래처} 미팅"),
    Kind(18, {WELFARE: 0.85, ENTERTAINMENT: 0.15}, RESTAURANT, (1, 2),
         "meal; dinner; lunch; 식대; 식사; 저녁"),
    Kind(11, {ENTERTAINMENT: 0.8, WELFARE: 0.2}, RESTAURANT, (3, 4),
         "meal; dinner; 식대; 식사; 저녁"),
    # Gifts, flowers, golf: for staff or for clients.
    Kind(14, {WELFARE: 1}, GIFTS, (2, 3, 4),
         "holiday gift for {staff}; birthday gift, {staff}; {직원} 명절 선물; {직원} 생일"),
    Kind(16, {ENTERTAINMENT: 1}, GIFTS, (2, 3, 4),
         "holiday gift for {client}; thank-you gift, {client}; {거래처} 명절 선물; "
         "{거래처} 기념품"),
    Kind(6, {ENTERTAINMENT: 0.7, WELFARE: 0.3}, GIFTS, (2, 3),
         "gift set; holiday gifts; 선물세트; 명절 선물"),
    Kind(11, {WELFARE: 1}, FLORIST, (2, 3),
         "wedding wreath, {staff}; condolence flowers, {staff}; {직원} 결혼 화환; {직원} 조화"),
    Kind(10, {ENTERTAINMENT: 1}, FLORIST, (2, 3),
         "opening wreath, {client}; condolence flowers, {client}; {거래처} 개업 화환; "
         "{거래처} 조화"),
    Kind(4, {ENTERTAINMENT: 0.65, WELFARE: 0.35}, FLORIST, (2, 3), "wreath; flowers; 화환; 조화"),
    Kind(10, {ENTERTAINMENT: 1}, "{} GOLF CLUB; {} COUNTRY CLUB; {} 골프; {} 컨트리클럽", (3, 4, 5),
         "green fee, {client}; golf with {client}; {거래처} 라운딩; {거래처} 골프"),
    Kind(18, {WELFARE: 1}, "{} CLINIC; {} MEDICAL; {} 의원; {} 검진센터", (1, 2, 3, 4),
         "health check, {staff}; flu shots; eye exam; vaccination; {직원} 건강검진; 독감 백신; "
         "{직원} 진료비"),
    Kind(10, {WELFARE: 1}, "{} FITNESS; {} SWIM CLUB; {} 헬스; {} 볼링장", (1, 2, 3),
         "gym pass, {staff}; club day, {staff}; 체력단련비; {직원} 동호회비"),
    # Travel: the memo tells a business trip from the company car and the way home.
    Kind(32, {TRAVEL: 1}, TAXI, (0, 1),
         "taxi to {client}; cab to airport; ride to {client} office; shuttle, field work; "
         "{거래처} 택시; 공항 택시; {직원} 출장 택시; 현장 이동"),
    Kind(28, {TRAVEL: 1}, STATION, (1, 2),
         "train to headquarters; express bus, plant visit; rail ticket, {client} visit; "
         "subway pass; {직원} 기차표; {거래처} 방문 승차권; 고속버스 왕복"),
    Kind(22, {TRAVEL: 1}, AIRLINE, (2, 3, 4),
         "domestic flight, {staff}; airfare to trade fair; baggage charge; "
         "flight, {client} demo; {직원} 항공권; 국내선 왕복; {거래처} 방문 항공"),
    Kind(25, {TRAVEL: 1}, HOTEL, (2, 3, 4),
         "overnight stay, {client} visit; 2 nights, plant audit; room for seminar; "
         "{staff} trip lodging; {직원} 출장 숙박; {거래처} 출장 2박; 현장 체류"),
    Kind(8, {TRAVEL: 0.8, ENTERTAINMENT: 0.2}, HOTEL, (2, 3, 4), "room; lodging; 객실; 숙박"),
    Kind(9, {TRAVEL: 0.85, WELFARE: 0.15}, TAXI, (0, 1), "taxi; ride; 택시비; 승차"),
    Kind(8, {VEHICLE: 0.7, TRAVEL: 0.3}, PARKING, (0, 1), "parking; parking fee; 주차비; 주차요금"),
    Kind(8, {VEHICLE: 0.75, TRAVEL: 0.25}, TOLLGATE, (0, 1),
         "toll; highway toll; 통행료; 고속도로"),
    Kind(10, {TRAVEL: 1}, CARRENTAL, (2, 3),
         "rental car, {client} visit; car for plant tour; 출장 렌트; {거래처} 방문 렌트"),
    # The company's own cars.
    Kind(30, {VEHICLE: 1}, FUEL, (1, 2),
         "gasoline, company van; diesel, delivery truck; fuel for pool car; {staff} van refuel; "
         "lpg refill, forklift; 법인차 주유; 트럭 경유; {직원} 업무용차 주유"),
    Kind(8, {VEHICLE: 0.8, TRAVEL: 0.2}, FUEL, (1, 2), "fuel; gasoline; 주유; 유류비"),
    Kind(26, {VEHICLE: 1}, GARAGE, (2, 3, 4),
         "oil change; tire replacement; brake pads; wiper blades; dent repair; van inspection; "
         "battery for truck; headlight bulb; transmission; 엔진오일 교체; 타이어 교체; "
         "브레이크 수리; 와이퍼; 법인차 정기점검; 트럭 배터리"),
    Kind(7, {VEHICLE: 1}, "{} CAR WASH; {} DETAILING; {} 세차장", (0, 1),
         "car wash; truck wash; 법인차 세차"),
    Kind(7, {VEHICLE: 1}, "{} INSURANCE; {} 화재보험; {} 보험", (4, 5),
         "fleet insurance; van premium; 법인차 보험; 트럭 보험료"),
    # Telephone, post, utilities.
    Kind(42, {TELECOM: 1}, TELECOMS, (1, 2, 3),
         "mobile bill, {staff}; internet line; phone bill; data roaming; fax line; call charges; "
         "sms credits; wi-fi plan; {직원} 휴대폰; 인터넷 요금; 전화요금; 전용선; 문자 발송; "
         "국제전화"),
    Kind(16, {TELECOM: 1}, POST, (0, 1),
         "registered mail, {client}; express mail; postage stamps; airmail; parcel postage; "
         "등기우편; 우표; 국제우편; {거래처} 우편 발송"),
    Kind(6, {TELECOM: 0.6, SUPPLIES: 0.4}, TELECOMS, (1, 2),
         "router; usb modem; sim card; 공유기; 모뎀; 유심"),
    Kind(18, {UTILITIES: 1}, "{} POWER; {} ELECTRIC; {} 전력; {} 전기", (3, 4),
         "electricity; power, warehouse; lighting charges; kilowatt usage; 전기요금; 창고 전기; "
         "전력비"),
    Kind(14, {UTILITIES: 1}, "{} WATERWORKS; {} WATER; {} 수도; {} 상수도", (1, 2, 3),
         "water bill; sewage charge; waterworks, plant; 수도요금; 상하수도; 하수도 사용료"),
    Kind(14, {UTILITIES: 1}, "{} GAS SUPPLY; {} ENERGY; {} 가스; {} 에너지", (2, 3),
         "gas bill; heating, office; boiler gas; steam supply; 가스요금; 사무실 난방비; "
         "보일러 가스"),
    Kind(6, {UTILITIES: 1}, FUEL, (3, 4),
         "heating oil, warehouse; kerosene for heater; 창고 난방유; 난방 등유"),
    # Taxes, dues, and the fees that look like them.
    Kind(24, {TAXES: 1}, TOWNHALL, (2, 3, 4, 5),
         "property tax; resident tax; license tax; road occupancy levy; environmental levy; "
         "재산세; 주민세; 등록면허세; 교통유발부담금; 도로점용료"),
    Kind(12, {TAXES: 1}, TAXOFFICE, (2, 3, 4),
         "stamp duty; land holding tax; late filing penalty; 인지세; 종합부동산세; 가산금"),
    Kind(9, {TAXES: 1}, ASSOCIATION, (3, 4),
         "annual dues; statutory dues; guild contribution; 법정 부담금; 조합비; 정기 분담금"),
    Kind(6, {TAXES: 0.7, FEES: 0.3}, ASSOCIATION, (2, 3),
         "membership; yearly fee; 정기 회비; 가입비"),
    Kind(5, {TAXES: 0.75, VEHICLE: 0.25}, TOWNHALL, (3, 4), "vehicle tax; 자동차세"),
    Kind(7, {FEES: 1}, TOWNHALL, (0,),
         "certificate issue; copy of register; notarized copy; 증명서 발급; 등본 발급"),
    # Rent and leases.
    Kind(22, {RENT: 1}, PROPERTY, (4, 5),
         "office rent; monthly rent; warehouse lease; tenancy, showroom; dormitory rent; "
         "사무실 월세; 임대료; 창고 임대; 매장 월세; 기숙사 임대"),
    Kind(13, {RENT: 1}, EQUIPMENT, (2, 3, 4),
         "copier lease; furniture rental; projector hire; tent hire; scaffold hire; 복사기 렌탈; "
         "가구 대여; 장비 대여; 빔프로젝터 대여"),
    Kind(8, {RENT: 1}, CARRENTAL, (4, 5),
         "monthly lease, company car; long-term lease; truck leasing; 법인차 리스료; 장기 리스"),
    Kind(5, {RENT: 0.7, FEES: 0.3}, EQUIPMENT, (1, 2),
         "water purifier; air purifier; 정수기; 공기청정기"),
    Kind(5, {FEES: 0.6, RENT: 0.4}, PROPERTY, (3, 4), "maintenance fee; building fee; 관리비"),
    # Supplies, and what else the same shops sell.
    Kind(46, {SUPPLIES: 1}, STATIONER, (0, 1, 2),
         "copy paper; pens for {staff}; ring binders; whiteboard; sticky notes; envelopes; "
         "staplers; folders, {client} meeting; notebooks; desk lamp; highlighters; 복사용지; "
         "사무용품; 바인더; 메모지; {직원} 필기구; 봉투; 화이트보드"),
    Kind(40, {SUPPLIES: 1}, COMPUTERS, (1, 2, 3),
         "toner; keyboard, {staff}; usb hub; monitor cable; webcam; headset, {staff}; "
         "memory stick; laptop stand; hdmi adapter; mouse pads; ink cartridge; 토너; 키보드; "
         "마우스; 케이블; {직원} 모니터 받침; 헤드셋; 충전기"),
    Kind(27, {SUPPLIES: 1}, MART, (0, 1),
         "paper towels; detergent; batteries; light bulbs; trash bags; hand soap; "
         "mop and bucket; cups for {client} visit; 종이컵; 청소용품; 건전지; 쓰레기봉투; 휴지; "
         "손세정제; 전구"),
    Kind(14, {WELFARE: 1}, MART, (1, 2),
         "snacks for {staff}; picnic food, {staff}; {직원} 간식; {직원} 다과"),
    Kind(6, {SUPPLIES: 0.55, WELFARE: 0.45}, MART, (1, 2),
         "pantry items; for the office; 탕비실 물품; 비품"),
    Kind(6, {SUPPLIES: 0.7, FEES: 0.3}, PRINTER, (1, 2), "business cards; name tags; 명함; 사원증"),
    # Services bought from outside.
    Kind(20, {FEES: 1}, "{} LAW OFFICE; {} PATENT FIRM; {} 법무사; {} 변호사", (3, 4, 5),
         "legal advice; patent filing; contract review, {client}; litigation; trademark search; "
         "등기 대행; 소송 자문; {거래처} 계약 검토; 상표 출원"),
    Kind(20, {FEES: 1}, "{} ACCOUNTING; {} CPA; {} 세무사; {} 세무법인", (3, 4, 5),
         "bookkeeping; audit fee; tax filing; payroll service; 기장료; 세무 조정; 결산 자문"),
    Kind(25, {FEES: 1}, BANK, (0, 1),
         "transfer fee, {client}; wire charge; guarantee fee; fx commission; escrow charge; "
         "이체 수수료; {거래처} 송금 수수료; 보증료; 환전 수수료"),
    Kind(31, {FEES: 1}, SOFTWARE, (2, 3, 4),
         "monthly subscription; server usage; license renewal; api credits; saas seats, {staff}; "
         "backup storage; antivirus; 월 구독료; 서버 이용료; 사용권 갱신; 백업 저장소; "
         "{직원} 메신저 구독"),
    Kind(6, {FEES: 0.75, TELECOM: 0.25}, SOFTWARE, (1, 2), "web hosting; domain; 호스팅; 도메인"),
    Kind(9, {FEES: 1}, "{} CLEANING; {} HYGIENE; {} 미화; {} 방역", (3, 4),
         "janitor, monthly; pest control; window cleaning; 청소 용역; 방역 용역"),
    Kind(7, {FEES: 1}, "{} SECURITY; {} GUARD; {} 경비; {} 보안", (2, 3),
         "night guard; alarm monitoring; 무인 경비; 출동 보안"),
    Kind(7, {FEES: 1}, "{} STAFFING; {} JOBS; {} 인력; {} 구인", (3, 4),
         "temp staff; recruiting agency; job posting; 파견 용역; 채용 대행"),
]
# fmt: on


@dataclass(frozen=True)
class _Line:
    """One drawn line and the account it ought to be booked to, before label noise."""

    pattern: str  # the merchant before the place was put in
    memo: str
    band: int
    place: tuple[str, str]
    voucher: str
    account: str
    label: str

    def row(self) -> tuple[str, ...]:
        """Return the line in the order of `COLUMNS`."""
        merchant = self.pattern.format(self.place[self.pattern.isascii()])
        band = BANDS[self.band][self.memo.isascii()]
        text = f"{merchant} | {self.memo} | {band}"
        return text, self.label, merchant, self.memo, band, self.voucher


def sample_ledger(rows: int = ROWS, seed: int = SEED) -> pd.DataFrame:
    """Return a synthetic ledger: `text` and `label`, the parts of the text, and the voucher.

    Args:
        rows: Number of lines.
        seed: The same seed gives the same lines on every machine; a longer ledger starts with them.
    """
    return pd.DataFrame([line.row() for line in _draw_lines(rows, seed)], columns=COLUMNS)


def sample_csv_bytes() -> bytes:
    """Return the sample as the bytes of a UTF-8 CSV file, the same on every machine."""
    return sample_ledger().to_csv(index=False, lineterminator="\n").encode("utf-8")


def ceiling(ledger: pd.DataFrame | None = None) -> dict[str, float]:
    """Return the accuracy and macro-F1 that no classifier of these lines can be expected to beat.

    Args:
        ledger: Rows of `sample_ledger`, among them every account. The best rule is scored on just
            these, so a small test split has its own, noisier value. Without it: the expectation
            over all lines the process can draw, computed exactly.
    """
    cells, joint = _label_distribution()
    # Right most often by definition; the tests show that changing a cell never raises macro-F1.
    likeliest = joint.argmax(axis=1)
    if ledger is not None:
        joint = _observed(ledger, cells)
    accuracy = joint[np.arange(len(likeliest)), likeliest].sum()
    return {"accuracy": float(accuracy), "macro_f1": float(_f1(joint, likeliest).mean())}


def _draw_lines(rows: int, seed: int) -> Iterator[_Line]:
    """Yield drawn lines, voucher by voucher; the lines of a voucher share its place only."""
    rng = random.Random(seed)
    shares = {kind: kind.weight for kind in KINDS}
    number = left = 0
    place = PLACES[0]
    for _ in range(rows):
        if not left:
            number, left = number + 1, _pick(rng, dict.fromkeys(LINES_PER_VOUCHER, 1))
            place = _pick(rng, dict.fromkeys(PLACES, 1))
        left -= 1
        kind = _pick(rng, shares)
        account = _pick(rng, kind.accounts)
        pattern, memo = _pick(rng, kind.merchant_shares), _pick(rng, kind.memo_shares)
        band = _pick(rng, kind.band_shares)
        label = account
        if rng.random() < NOISE_SHARE:
            label = _pick(rng, {other: 1 for other in ACCOUNTS if other != account})
        yield _Line(pattern, memo, band, place, f"V{number:05d}", account, label)


def _pick(rng: random.Random, shares: Mapping[T, float]) -> T:
    """Return one key, drawn by share.

    `random.choices` uses nothing but `random()`, whose sequence Python keeps across versions.
    """
    return rng.choices(list(shares), list(shares.values()))[0]


@cache
def _label_distribution() -> tuple[dict[tuple[str, str, int], int], np.ndarray]:
    """Return the index of every (merchant pattern, memo, band) and P(cell, label), (cells, C)."""
    mass = defaultdict(lambda: np.zeros(len(ACCOUNTS)))
    for kind in KINDS:
        accounts = np.array([kind.accounts.get(account, 0.0) for account in ACCOUNTS])
        merchants, memos = kind.merchant_shares.items(), kind.memo_shares.items()
        bands = kind.band_shares.items()
        for (pattern, p), (memo, q), (band, r) in product(merchants, memos, bands):
            mass[pattern, memo, band] += accounts * kind.weight / 1000 * p * q * r
    intended = np.array(list(mass.values()))
    wrong = NOISE_SHARE / (len(ACCOUNTS) - 1)
    joint = intended * (1 - NOISE_SHARE - wrong) + intended.sum(axis=1, keepdims=True) * wrong
    return {cell: index for index, cell in enumerate(mass)}, joint


def _observed(ledger: pd.DataFrame, cells: dict[tuple[str, str, int], int]) -> np.ndarray:
    """Return the share of the ledger's rows in each cell with each label, (cells, C)."""
    patterns = {
        pattern.format(place[pattern.isascii()]): pattern
        for pattern, _, _ in cells
        for place in PLACES
    }
    bands = {text: index for index, band in enumerate(BANDS) for text in band}
    counts = np.zeros((len(cells), len(ACCOUNTS)))
    columns = ledger[["merchant", "memo", "amount_band", "label"]]
    for merchant, memo, band, label in columns.itertuples(index=False):
        counts[cells[patterns[merchant], memo, bands[band]], ACCOUNTS.index(label)] += 1
    return counts / len(ledger)


def _f1(joint: np.ndarray, rule: np.ndarray) -> np.ndarray:
    """Return the F1 of each account when `rule` names the account to predict in each cell, (C,)."""
    chosen = np.eye(len(ACCOUNTS))[rule]  # (cells, C)
    predicted = (chosen * joint.sum(axis=1, keepdims=True)).sum(axis=0)
    return 2 * (chosen * joint).sum(axis=0) / (predicted + joint.sum(axis=0))
