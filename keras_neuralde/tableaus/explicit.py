"""Explicit Runge-Kutta methods of orders 1 to 5."""

from fractions import Fraction

from keras_neuralde.tableaus.tableau import ButcherTableau


def _exact(*rows):
    """Rows of exact numbers, written as in a textbook: `_exact("1/2", "0 3/4")`."""
    return tuple(tuple(Fraction(number) for number in row.split()) for row in rows)


def _flat(numbers):
    return _exact(numbers)[0]


EULER = ButcherTableau(
    name="euler",
    order=1,
    c=(0,),
    a=((),),
    b=(1,),
    dense=((1,),),
    dense_order=1,
    source="L. Euler, Institutionum calculi integralis, vol. 1, 1768, cap. VII",
)

# Two stages determine a quadratic extension of order 2 without a further evaluation:
# b_2(θ) = θ² / (2 c_2), b_1(θ) = θ - b_2(θ) (Hairer, Nørsett & Wanner I, section II.6).
MIDPOINT = ButcherTableau(
    name="midpoint",
    order=2,
    c=_flat("0 1/2"),
    a=_exact("", "1/2"),
    b=(0, 1),
    error=(-1, 1),
    error_order=1,
    dense=_exact("1 -1", "0 1"),
    dense_order=2,
    source="C. Runge, Mathematische Annalen 46, 1895, pp. 167-178",
)

HEUN = ButcherTableau(
    name="heun",
    order=2,
    c=(0, 1),
    a=_exact("", "1"),
    b=_flat("1/2 1/2"),
    error=_flat("-1/2 1/2"),
    error_order=1,
    dense=_exact("1 -1/2", "0 1/2"),
    dense_order=2,
    source="K. Heun, Zeitschrift für Mathematik und Physik 45, 1900, pp. 23-38",
)

RALSTON = ButcherTableau(
    name="ralston",
    order=2,
    c=_flat("0 2/3"),
    a=_exact("", "2/3"),
    b=_flat("1/4 3/4"),
    error=_flat("-3/4 3/4"),
    error_order=1,
    dense=_exact("1 -3/4", "0 3/4"),
    dense_order=2,
    source="A. Ralston, Mathematics of Computation 16, 1962, pp. 431-437",
)

BOSH3 = ButcherTableau(
    name="bosh3",
    order=3,
    c=_flat("0 1/2 3/4 1"),
    a=_exact("", "1/2", "0 3/4", "2/9 1/3 4/9"),
    b=_flat("2/9 1/3 4/9 0"),
    error=_flat("-5/72 1/12 1/9 -1/8"),
    error_order=2,
    # The cubic Hermite polynomial: the last stage is the slope at the end of the step.
    dense=_exact("1 -4/3 5/9", "0 1 -2/3", "0 4/3 -8/9", "0 -1 1"),
    dense_order=3,
    source="P. Bogacki & L. F. Shampine, Applied Mathematics Letters 2, 1989, pp. 321-325",
)

RK4 = ButcherTableau(
    name="rk4",
    order=4,
    c=_flat("0 1/2 1/2 1"),
    a=_exact("", "1/2", "0 1/2", "0 0 1"),
    b=_flat("1/6 1/3 1/3 1/6"),
    # Order 3 is the most that the four stages allow; it is uniform over the step, so the
    # interpolated solution converges with the method's own order 4.
    dense=_exact("1 -3/2 2/3", "0 1 -2/3", "0 1 -2/3", "0 -1/2 2/3"),
    dense_order=3,
    source="W. Kutta, Zeitschrift für Mathematik und Physik 46, 1901, pp. 435-453; continuous "
    "extension: E. Hairer, S. P. Nørsett & G. Wanner, Solving Ordinary Differential Equations I, "
    "2nd ed. 1993, section II.6",
)

DOPRI5 = ButcherTableau(
    name="dopri5",
    order=5,
    c=_flat("0 1/5 3/10 4/5 8/9 1 1"),
    a=_exact(
        "",
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ),
    b=_flat("35/384 0 500/1113 125/192 -2187/6784 11/84 0"),
    error=_flat("71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40"),
    error_order=4,
    dense=_exact(
        "1 -8048581381/2820520608 8663915743/2820520608 -12715105075/11282082432",
        "0 0 0 0",
        "0 131558114200/32700410799 -68118460800/10900136933 87487479700/32700410799",
        "0 -1754552775/470086768 14199869525/1410260304 -10690763975/1880347072",
        "0 127303824393/49829197408 -318862633887/49829197408 701980252875/199316789632",
        "0 -282668133/205662961 2019193451/616988883 -1453857185/822651844",
        "0 40617522/29380423 -110615467/29380423 69997945/29380423",
    ),
    dense_order=4,
    source="J. R. Dormand & P. J. Prince, Journal of Computational and Applied Mathematics 6, "
    "1980, pp. 19-26; continuous extension: L. F. Shampine, Mathematics of Computation 46, 1986, "
    "pp. 135-150",
)

TSIT5 = ButcherTableau(
    name="tsit5",
    order=5,
    c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0,
    ),
    error=(
        0.0017800110522257714,
        0.0008164344596567469,
        -0.007880878010261995,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918697,
        -0.015151515151515152,
    ),
    error_order=4,
    dense=(
        (1, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0, 0.13169999999999998, -0.2234, 0.1017),
        (0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0, 1.5, -4, 2.5),
    ),
    dense_order=4,
    source="C. Tsitouras, Computers & Mathematics with Applications 62, 2011, pp. 770-775",
)
