"""Evaluation: pure functions on raw scores, larger = more anomalous; nothing here rescales a score."""

from .intervals import Interval as Interval
from .intervals import bootstrap_interval as bootstrap_interval
from .ranking import OracleF1 as OracleF1
from .ranking import RocCurve as RocCurve
from .ranking import auroc as auroc
from .ranking import average_precision as average_precision
from .ranking import average_precision_normal as average_precision_normal
from .ranking import f1_at as f1_at
from .ranking import f1_max_oracle as f1_max_oracle
from .ranking import fpr_at_tpr as fpr_at_tpr
from .ranking import roc_curve as roc_curve
from .regions import Pair as Pair
from .regions import PixelCurve as PixelCurve
from .regions import au_pro as au_pro
from .regions import pixel_auroc as pixel_auroc
from .regions import pixel_average_precision as pixel_average_precision
from .regions import pixel_curve as pixel_curve
